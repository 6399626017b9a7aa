"""A long log from a seed: random traffic of a realm with three replicas, with everything that can be
refused in it.

Every round runs all actions in a random order, so a log of a few rounds holds every command and every code a
step can give. Nothing here looks at the machine's verdicts except to learn which updates were accepted.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random
from typing import Unpack

from e2eks.v1 import command_pb2 as pb

from keyserver.machine import commands, views
from keyserver.machine.codes import Code
from keyserver.machine.commands import AdmitVerifier, AnnounceRules, Delimiter, SignHead, SubmitUpdate, Tick
from verifier import encoding, limits
from verifier.epoch import compose_head
from workload.cast import Changes, Draft, Key, User, derive, draft, erasure, policy_of
from workload.replica import MIN_INTERVAL_MS, Replica

# What no log can provoke: the edge alone gives these.
EDGE_ONLY = frozenset({
    Code.UNKNOWN_REALM, Code.WRONG_INDEX, Code.COMMITMENT_MISMATCH, Code.DOMAIN_NOT_SERVED,
    Code.QUORUM_UNSATISFIABLE, Code.NOT_RATIFIED_IN_TIME, Code.NOT_READY,
})  # fmt: skip
STEP_CODES = frozenset(Code) - EDGE_ONLY


def build(seed: int, entries: int, replicas: int = 3) -> Replica:
    """A replica that has applied a log of at least `entries` entries; equal for equal arguments."""
    script = Script(Replica(replicas, 3, name=f"script {replicas}"), Random(seed))
    for verifier in script.replica.verifiers[:2]:
        script.replica.admit(verifier)
    while len(script.replica.log) < entries:
        script.round()
    return script.replica


class Script:
    """One run: a replica, its users, and a source of chance."""

    def __init__(self, replica: Replica, rng: Random) -> None:
        self.replica = replica
        self.realm = replica.realm
        self.rng = rng
        self.users: list[User] = []
        self.hot = User.named("hot")  # meets the daily quota
        self.serial = 0
        self.staying = replica.replicas[0], replica.replicas[-1]  # the others come and go

    def round(self) -> None:
        actions: list[Callable[[], None]] = [
            *(self.registrations,) * 2, *(self.updates,) * 3, *(self.epoch,) * 4, self.refused_registrations,
            self.refused_updates, self.revocation, self.unreadable_commands, self.refused_delimiters,
            self.refused_signatures, self.ratifications, self.erasures, self.admissions,
            self.refused_entries, self.clocks, self.other_replicas, self.announcements,
        ]  # fmt: skip
        self.rng.shuffle(actions)
        for action in actions:
            action()

    # Helpers

    def next_name(self) -> str:
        self.serial += 1
        return f"user-{self.serial}"

    def some_replica(self) -> Key:
        return self.rng.choice(self.replica.replicas)

    def some_user(self) -> User:
        if not self.users:
            self.registrations()
        return self.rng.choice(self.users)

    def fresh(self, **changes: Unpack[Changes]) -> Draft:
        """The registration of somebody new, lawful unless changed."""
        options: Changes = {"endorsers": self.replica.endorsers, **changes}
        return draft(self.realm, User.named(self.next_name()), **options)

    def submit_all(self, made: list[tuple[User, Draft]]) -> None:
        """Many updates in one entry, by any replica; some private parts are blank."""
        parts = [one.part if self.rng.random() < 0.9 else b"" for _, one in made]
        entry = self.replica.entry(*(one.command for _, one in made), by=self.some_replica(), parts=parts)
        verdicts = self.replica.commit(entry).verdicts
        for (user, one), verdict in zip(made, verdicts, strict=True):
            if verdict is Code.APPLIED and one.entry not in user.history:
                user.accepted(one.entry)

    # Users

    def registrations(self) -> None:
        newcomers = [User.named(self.next_name()) for _ in range(self.rng.randint(1, 3))]
        self.submit_all([(u, draft(self.realm, u, endorsers=self.replica.endorsers)) for u in newcomers])
        self.users += newcomers

    def updates(self) -> None:
        chosen = {user.user_id: user for user in (self.some_user() for _ in range(self.rng.randint(1, 4)))}
        self.submit_all([(user, draft(self.realm, user)) for user in chosen.values()])
        if self.hot.version is None:
            self.replica.register(self.hot)
        else:
            self.replica.update(self.hot)
        current = views.current_entry(self.replica.store, self.some_user().index)
        if current is not None:
            self.replica.run(SubmitUpdate(current.update), by=self.some_replica())

    def refused_updates(self) -> None:
        user, label = self.some_user(), self.next_name()
        variants: list[Changes] = [
            {"label": label, "version": user.next_version + 1},
            {"label": label, "version": 0, "previous": b""},
            {"label": label, "previous": derive(label)},
            {"label": label, "signers": []},
            {"label": label, "signers": [Key("stranger")]},
            {"label": label, "new_keys": [Key(label)], "signers": user.keys},
            {"label": label, "version": 0, "revocation": True},
            {"label": label, "version": user.next_version, "revocation": True, "signers": [Key("stranger")]},
        ]
        made = [draft(self.realm, user, **changes).command for changes in variants]
        self.replica.run(*made, by=self.some_replica())
        for command in made[:2]:
            self.replica.run(command)
        tampered = replace(made[0], update=draft(self.realm, user, label="x").command.update)
        self.replica.run(replace(tampered, private_hash=derive(label)))

    def refused_registrations(self) -> None:
        now, one = self.replica.clock_ms, self.replica.replicas[:1]
        proof = derive("proof", self.next_name())
        made = [
            self.fresh(endorsers=()),
            self.fresh(endorsers=one) if len(self.replica.replicas) > 2 else self.fresh(endorsers=[Key("s")]),
            self.fresh(endorsers=[*one, Key("stranger")]),
            self.fresh(not_after_ms=now - 3_600_000),
            self.fresh(proof=proof),
            self.fresh(proof=proof),
            self.fresh(signers=[]),
            self.fresh(revocation=True),
            self.fresh(version=1, previous=derive("none")),
        ]
        self.replica.run(*(one.command for one in made), by=self.some_replica())
        command = self.fresh().command
        self.replica.run(replace(command, private_hash=derive("another")))
        self.replica.run(replace(command, proof_id=b""))

    def revocation(self) -> None:
        user = self.some_user()
        if not user.revoked:
            self.submit_all([(user, draft(self.realm, user, version=user.next_version + 3, revocation=True))])
            self.epoch()
        if user.revoked:
            again = draft(self.realm, user, version=user.next_version + 1, revocation=True)
            later = draft(self.realm, user, version=user.next_version + 1)
            bare = draft(self.realm, user, label="bare")
            self.replica.run(again.command, later.command, bare.command)
            if self.rng.random() < 0.7:
                self.replica.register(user, label=self.next_name())

    def erasures(self) -> None:
        user, stranger = self.some_user(), Key("stranger")
        lawful = erasure(self.realm, user)
        self.replica.run(
            erasure(self.realm, user, signers=[]),
            erasure(self.realm, user, signers=[stranger]),
            erasure(self.realm, user, entry_hash=derive("another entry")),
            erasure(self.realm, User.named("nobody"), entry_hash=derive("none")),
            replace(lawful, index=self.hot.index),
            lawful,
            erasure(self.realm, user, signers=[stranger, *user.keys]),
            by=self.some_replica(),
        )
        bad = pb.Command(erase=pb.Erase(index=user.index, entry_hash=b"short"))
        self.replica.run(bad.SerializeToString(deterministic=True))

    # Heads

    def epoch(self, between: Callable[[], None] = lambda: None) -> None:
        """A delimiter, updates behind it, signatures in any order, and now and then a late one."""
        replica = self.replica
        if replica.state.epoch != replica.state.signed_epoch:
            replica.sign_all()
        replica.clock_ms += MIN_INTERVAL_MS + self.rng.randint(0, 3000)
        for key in self.rng.sample(replica.replicas, len(replica.replicas) // 2 + 1):
            replica.run(Tick(), by=key)
        replica.run(Delimiter(replica.state.epoch + 1, replica.clock_ms), by=self.some_replica())
        between()
        if self.rng.random() < 0.5:
            self.registrations()
        order = self.rng.sample(replica.replicas, len(replica.replicas))
        absent = self.rng.random() < 0.3 and len(order) > 2
        for key in order[: len(order) - absent]:
            replica.run(replica.signature(key), by=key)
        if self.rng.random() < 0.3 and replica.state.epoch > 3:
            key = self.some_replica()
            replica.run(replica.signature(key, epoch=replica.state.epoch - 2), by=key)

    def refused_delimiters(self) -> None:
        replica, now = self.replica, self.replica.clock_ms
        epoch = replica.state.epoch
        for number, time_ms in (
            (epoch, now), (epoch + 2, now), (2**64 - 1, now), (epoch + 1, replica.state.issue_time_ms),
            (epoch + 1, now + limits.DELIMITER_DRIFT_MS + 60_000), (epoch + 1, 2**64 - 1),
        ):  # fmt: skip
            replica.run(Delimiter(number, time_ms), by=self.some_replica())
        replica.clock_ms += MIN_INTERVAL_MS
        replica.tick_all()
        for number in (1, 2):
            replica.run(Delimiter(epoch + number, replica.clock_ms))
        pending = replica.ratification(replica.verifiers[0], replica.head().encoded)
        replica.run(pending)
        replica.sign_all()

    def refused_signatures(self) -> None:
        replica = self.replica
        if replica.state.epoch == 0:
            self.epoch()
        key, other = self.rng.sample([*replica.replicas, *replica.verifiers], 2)[0], self.some_replica()
        good = replica.signature(other)
        replica.run(good, good, replace(good, signature=bytes(64)), by=other)
        replica.run(replace(replica.signature(key), head_hash=derive("fork")), by=other)
        unsigned = next(self.unsigned(), None)
        if unsigned is not None:
            epoch, silent = unsigned
            replica.run(replace(replica.signature(silent, epoch), signature=bytes(64)), by=silent)
        for epoch in (0, replica.state.epoch + 1, 2**64 - 1):
            replica.run(SignHead(epoch, derive("none"), bytes(64)), by=other)

    def unsigned(self) -> Iterator[tuple[int, Key]]:
        """(epoch, replica) of signatures that the log lacks."""
        for epoch in range(self.replica.state.epoch, 0, -1):
            signers = views.replica_signers(self.replica.store, epoch)
            yield from ((epoch, key) for key in self.replica.replicas if key.id not in signers)

    # Verifiers

    def ratifications(self) -> None:
        replica = self.replica
        if replica.state.signed_epoch == 0:
            self.epoch()
        for verifier in replica.verifiers:  # the third one is never listed
            made = replica.ratification(verifier)
            replica.run(made, made, by=self.some_replica())
        verifier = replica.verifiers[0]
        for before in (0, replica.state.epoch - 1, replica.state.epoch + 1, 2**64 - 2):
            replica.run(replica.ratification(verifier, self.fork(before)))
        forged = pb.Command.FromString(commands.encode_command(replica.ratification(verifier)))
        forged.add_ratification.ratification.ratifications[0].timestamp_ms += 1
        replica.run(forged.SerializeToString(deterministic=True))

    def fork(self, epoch_before: int) -> bytes:
        return compose_head(
            self.realm,
            replace(self.replica.state.chain, epoch=epoch_before),
            root_hash=derive("fork"),
            issue_time_ms=self.replica.clock_ms,
            history_root=derive("history"),
            state_digest=derive("digest"),
        )

    def admissions(self) -> None:
        replica = self.replica
        replica.run(AdmitVerifier(replica.replicas[0].public_key), by=self.some_replica())
        spam = [AdmitVerifier(Key("spam", number).public_key) for number in range(limits.VERIFIERS + 1)]
        replica.run(*spam[:: 1 if self.serial < 40 else 13], spam[-1], by=replica.replicas[-1])
        replica.run(AdmitVerifier(replica.verifiers[0].public_key))

    # Replicas

    def other_replicas(self) -> None:
        """One change, and on its way everything that can be refused of one."""
        replica, present = self.replica, self.replica.replicas
        if replica.state.epoch:
            replica.sign_all()
        newcomer = Key("replica", self.next_name())
        add, remove = self.rng.choice(self.changes_of(newcomer))
        two = policy_of([*present[1:], newcomer, Key("another")], len(present) // 2 + 1)
        base = views.policy_base(replica.store, self.realm)
        replica.run(
            replica.change(add=newcomer, by=[newcomer, *present[: len(present) // 2], Key("stranger")]),
            replica.change(add=newcomer, by=present),
            replica.change(add=newcomer, base=derive("another base")),
            replica.change(add=newcomer, not_after_ms=1),
            replica.change(add=newcomer, policy=encoding.policy_message(two)),
            replica.change(add=replica.verifiers[0]),
            replica.change(add=newcomer, base=base, by=[*present, *present]),
            by=self.some_replica(),
        )
        lawful, other = replica.change(add=add, remove=remove), replica.change(add=Key("another"))
        replica.run(lawful, lawful, other, AdmitVerifier(newcomer.public_key), by=self.some_replica())
        self.epoch(between=lambda: self.leave(remove))
        replica.run(lawful)

    def changes_of(self, newcomer: Key) -> list[tuple[Key | None, Key | None]]:
        """(added, removed) of the changes that keep about as many replicas as at the start."""
        present, at_start = self.replica.replicas, len(self.realm.genesis_policy.keys)
        leaving = self.rng.choice([key for key in present if key not in self.staying] or present)
        found: list[tuple[Key | None, Key | None]] = [(newcomer, leaving)] * 2
        found += [(newcomer, None)] * (len(present) <= at_start)
        return found + [(None, leaving)] * (len(present) >= max(at_start, 2))

    def leave(self, leaving: Key | None) -> None:
        """Who leaves signs the last head, and may do nothing else."""
        replica = self.replica
        if leaving is not None and leaving not in replica.replicas:
            signature = replica.signature(leaving)
            replica.run(Tick(), by=leaving)
            replica.run(signature, replace(signature, signature=bytes(64)), by=leaving)

    def announcements(self) -> None:
        """One replica knows more levels than the others, for ever; a realm of one would move on."""
        replica = self.replica
        if len(self.realm.genesis_policy.keys) > 2:
            level = AnnounceRules(self.rng.choice((0, 1, 2, 3)))
            replica.run(level, level, by=self.staying[1])

    # What never should have been proposed

    def unreadable_commands(self) -> None:
        replica = self.replica
        many = pb.Command.FromString(commands.encode_command(self.fresh().command))
        for number in range(limits.ENDORSEMENTS + 1):
            many.submit_update.endorsements.add(key_id=derive(number), not_after_ms=1, signature=bytes(64))
        short = pb.Command(sign_head=pb.SignHead(epoch=1, head_hash=b"short", signature=bytes(64)))
        wire = [pb.Command(), pb.Command(submit_update=pb.SubmitUpdate()), many, short]
        wire += [
            pb.Command(add_ratification=pb.AddRatification()),
            pb.Command(admit_verifier=pb.AdmitVerifier()),
        ]
        replica.run(*(one.SerializeToString(deterministic=True) for one in wire), Tick())

    def refused_entries(self) -> None:
        replica = self.replica
        replica.commit(self.rng.randbytes(self.rng.randint(0, 300)))
        replica.commit(replica.entry(Tick(), rules=2))
        replica.commit(replica.entry(Tick(), by=Key("stranger")))
        replica.commit(replica.entry(Tick(), Delimiter(replica.state.epoch + 1, replica.clock_ms)))
        envelope = commands.encode_envelope(replica=replica.replicas[0].id, time_ms=2**64 - 1, commands=[])
        replica.commit(commands.encode_log_entry(envelope, bytes(64)))
        forged = pb.LogEntry.FromString(replica.entry(Tick(), parts=[b"any private part"]))
        forged.signature = bytes(64)
        replica.commit(forged.SerializeToString(deterministic=True))

    def clocks(self) -> None:
        """One clock that is wrong by hours, and rarely a day that passes."""
        self.replica.run(Tick(), by=self.some_replica(), time_ms=max(0, self.replica.clock_ms - 7_200_000))
        if len(self.replica.replicas) > 1:
            ahead_ms = self.replica.clock_ms + 30_000
            self.replica.run(Tick(), by=self.replica.replicas[-1], time_ms=ahead_ms)
        if self.rng.random() < 0.05:
            self.replica.clock_ms += limits.DAY_MS
            self.replica.tick_all()
