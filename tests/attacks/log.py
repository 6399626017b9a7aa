"""The replicated log: one compromised replica of three, and what it proposes in the name of all.

A play is a replica's state and the payload that the log gives it next; the verdict is the step's, one for
each command. Nothing may halt a replica; nothing by a minority may pass that an honest one would not propose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from e2eks.v1 import command_pb2 as pb
from e2eks.v1 import types_pb2
from workload.cast import Key, User, derive, draft, endorse, erasure, policy_of
from workload.replica import MIN_INTERVAL_MS, Replica

from attacks.surface import Surface
from keyserver.machine import commands
from keyserver.machine.commands import AdmitVerifier, AnnounceRules, Command, Delimiter, Tick
from verifier import encoding, limits
from verifier.encoding import canonical


class Play(NamedTuple):
    replica: Replica
    payload: bytes


class Log(Surface):
    """Three replicas; r2 is the compromised one. Alice is registered in epoch 1, which all have signed."""

    def _lived_in(self) -> tuple[Replica, User]:
        replica, alice = Replica(3), User.named("alice")
        replica.admit(replica.verifiers[0])
        replica.register(alice)
        replica.close_epoch()
        return replica, alice

    def _key(self, replica: Replica, name: str) -> Key:
        known = {f"r{number}": key for number, key in enumerate(replica.replicas)}
        known |= {f"v{number}": key for number, key in enumerate(replica.verifiers)}
        return known.get(name) or Key(name)

    def judge_entry(self, play: Play) -> str:
        outcome = play.replica.commit(play.payload)
        return " ".join(code.name for code in outcome.verdicts)

    # Entries

    def make_payload(self, data: str) -> Play:
        return Play(self._lived_in()[0], bytes.fromhex(data))

    def make_tick(self, by: str = "r2", rules: int = limits.RULES) -> Play:
        replica, _ = self._lived_in()
        return Play(replica, replica.entry(Tick(), by=self._key(replica, by), rules=rules))

    def make_tick_in_anothers_name(self, signed_for: str = "this realm") -> Play:
        """r0's envelope under r2's signature, or r0's own for another realm."""
        replica, _ = self._lived_in()
        entry = pb.LogEntry.FromString(replica.entry(Tick()))
        if signed_for == "this realm":
            message = commands.envelope_message(replica.realm.hash, entry.envelope)
            entry.signature = replica.replicas[2].sign(message)
        else:
            message = commands.envelope_message(derive("another realm"), entry.envelope)
            entry.signature = replica.replicas[0].sign(message)
        return Play(replica, canonical(entry))

    def make_tick_with_unknown_field(self) -> Play:
        replica, _ = self._lived_in()
        entry = pb.LogEntry.FromString(replica.entry(Tick()))
        entry.envelope += b"\x7a\x00"
        return Play(replica, canonical(entry))

    # Epochs

    def make_delimiter(
        self,
        epoch: int = 2,
        after_ms: int = MIN_INTERVAL_MS,
        others_tick: bool = True,
        with_tick: bool = False,
    ) -> Play:
        """r2 ends an epoch so long after the last head; the others' clocks are at that time or still."""
        replica, _ = self._lived_in()
        at = replica.head().issue_time_ms + after_ms
        if others_tick:
            for key in replica.replicas[:2]:
                replica.run(Tick(), by=key, time_ms=at)
        given: list[Command] = [Delimiter(epoch, at), *([Tick()] if with_tick else [])]
        return Play(replica, replica.entry(*given, by=replica.replicas[2], time_ms=at))

    def make_delimiter_after(self, signatures: int) -> Play:
        """r2 ends epoch 3 while epoch 2 has so many signatures."""
        replica, _ = self._lived_in()
        replica.delimit()
        for key in replica.replicas[:signatures]:
            replica.run(replica.signature(key), by=key)
        replica.clock_ms += MIN_INTERVAL_MS
        replica.tick_all()
        return Play(replica, replica.entry(Delimiter(3, replica.clock_ms), by=replica.replicas[2]))

    def make_head_signature(self, epoch: int = 2, of: str = "our head", by: str = "r2") -> Play:
        """r2 signs a head in its envelope, in some way."""
        replica, _ = self._lived_in()
        replica.delimit()
        signed = replica.signature(self._key(replica, by))
        if of == "another head":
            signed = replace(signed, head_hash=derive("another head"))
        return Play(replica, replica.entry(replace(signed, epoch=epoch), by=replica.replicas[2]))

    def make_head_signature_again(self) -> Play:
        play = self.make_head_signature()
        play.replica.commit(play.payload)
        return play

    # Registrations and updates

    def make_registration(self, endorsed: str = "by two replicas", proof: str = "") -> Play:
        """Bob's registration, with the endorsements that r2 could get; `proof` (hexadecimal) is its id."""
        replica, _ = self._lived_in()
        bob, carol = User.named("bob"), User.named("carol")
        two, now = replica.replicas[:2], replica.clock_ms
        options: Mapping[str, dict[str, Any]] = {
            "by two replicas": {"endorsers": two},
            "by nobody": {"endorsers": []},
            "by one replica": {"endorsers": two[:1]},
            "by one replica and a verifier": {"endorsers": [two[0], replica.verifiers[0]]},
            "by one replica and a stranger": {"endorsers": [two[0], Key("stranger")]},
            "until a moment ago": {"endorsers": two, "not_after_ms": now - 1},
        }
        made = draft(replica.realm, bob, **options.get(endorsed, {"endorsers": two}))
        command = made.command
        theirs = draft(replica.realm, carol, endorsers=two).command
        if endorsed == "for somebody else":
            command = replace(command, endorsements=theirs.endorsements, proof_id=theirs.proof_id)
        if endorsed == "by two, one of them false":
            other = derive("something else")
            false = endorse(replica.realm, two[1], other, other, other, other, 2**63)
            command = replace(command, endorsements=(command.endorsements[0], false))
        if endorsed == "with a proof that was used":
            replica.submit(draft(replica.realm, carol, endorsers=two, proof=derive("used")))
            command = draft(replica.realm, bob, endorsers=two, proof=derive("used")).command
        if proof:
            command = draft(replica.realm, bob, endorsers=two, proof=bytes.fromhex(proof)).command
        return Play(replica, replica.entry(command, by=replica.replicas[2]))

    def make_update(self, signers: Sequence[str] = ("alice",), times: int = 1, version: int = 1) -> Play:
        """Alice's next version, so many times in one entry with other keys each."""
        replica, alice = self._lived_in()
        by = {"alice": alice.keys[0], "r2": replica.replicas[2], "thief": Key("thief")}
        made = [
            draft(
                replica.realm, alice, signers=[by[name] for name in signers], label=number, version=version
            ).command
            for number in range(times)
        ]
        return Play(replica, replica.entry(*made, by=replica.replicas[2]))

    def make_theft(self, signers: Sequence[str]) -> Play:
        """Alice's entry under the thief's policy."""
        replica, alice = self._lived_in()
        by = {"alice": alice.keys[0], "thief": Key("thief")}
        made = draft(replica.realm, alice, new_keys=[Key("thief")], signers=[by[name] for name in signers])
        return Play(replica, replica.entry(made.command, by=replica.replicas[2]))

    def make_update_number(self, of_the_day: int) -> Play:
        """An update of alice's, the so-many-th of one day of the log's time."""
        replica, alice = self._lived_in()
        for _ in range(of_the_day - 2):  # her registration was the first
            replica.update(alice)
            replica.close_epoch()
        made = draft(replica.realm, alice)
        return Play(replica, replica.entry(made.command, by=replica.replicas[2]))

    def make_erasure(self, by: str = "alice", of: str = "the entry") -> Play:
        """Alice's keys are to be forgotten."""
        replica, alice = self._lived_in()
        signers = {"alice": alice.keys, "thief": [Key("thief")], "r2": replica.replicas[2:], "nobody": []}[by]
        hashed = {"the entry": alice.previous, "another entry": derive("entry")}[of]
        made = erasure(replica.realm, alice, signers=signers, entry_hash=hashed)
        return Play(replica, replica.entry(made, by=replica.replicas[2]))

    # Verifiers

    def make_admission(self, of: str = "v1", approvals: Sequence[str] = ()) -> Play:
        """r2 approves a key as a verifier's, after others have."""
        replica, _ = self._lived_in()
        command = AdmitVerifier(self._key(replica, of).public_key)
        for name in approvals:
            replica.run(command, by=self._key(replica, name))
        return Play(replica, replica.entry(command, by=replica.replicas[2]))

    def make_admission_of_bytes(self, data: str) -> Play:
        replica, _ = self._lived_in()
        command = commands.encode_command(AdmitVerifier(bytes.fromhex(data)))
        return Play(replica, replica.entry(command, by=replica.replicas[2]))

    def make_ratification(self, how: str = "by v0") -> Play:
        """r2 proposes a verifier's ratification of the newest head, in some way."""
        replica, _ = self._lived_in()
        v0, head = replica.verifiers[0], replica.head().encoded
        good = replica.ratification(v0)
        ways: Mapping[str, Callable[[], Command]] = {
            "by v0": lambda: good,
            "by v1, who is not listed": lambda: replica.ratification(replica.verifiers[1]),
            "by r2 itself": lambda: replica.ratification(replica.replicas[2]),
            "of another root": lambda: replica.ratification(v0, _changed(head, root_hash=derive("root"))),
            "of epoch 2^63": lambda: replica.ratification(v0, _changed(head, epoch=2**63)),
        }
        if how == "by v0, again":
            replica.run(good)
        return Play(replica, replica.entry(ways.get(how, lambda: good)(), by=replica.replicas[2]))

    # Replicas

    def make_change_of_replicas(
        self,
        add: str = "r3",
        remove: str = "",
        by: Sequence[str] = ("r0", "r1", "r3"),
        how: str = "",
    ) -> Play:
        """r2 proposes other replicas, with the approvals that it has; `how` it is spoiled."""
        replica, _ = self._lived_in()
        keys = {name: self._key(replica, name) for name in {*by, add, remove} if name}
        fields = _SPOILED[how](replica) if how in _SPOILED else {}
        change = replica.change(
            add=keys.get(add), remove=keys.get(remove), by=[keys[name] for name in by], **fields
        )
        if how == "after another":
            replica.run(replica.change(add=Key("another")))
        if how == "again, after it was undone":
            replica.run(change)
            replica.delimit()
            replica.sign_all()
            replica.changed(remove=keys[add])
        if how == "with approvals of another change":
            other = replica.change(remove=replica.replicas[2], by=[keys[name] for name in by])
            change = replace(change, approvals=other.approvals)
        return Play(replica, replica.entry(change, by=replica.replicas[2]))

    def make_entry_of_the_removed(self, what: str = "head", signed: bool = False) -> Play:
        """r2 was removed by head 2, which awaits its majority unless `signed`; what it proposes then."""
        replica, _ = self._lived_in()
        leaving = replica.replicas[2]
        replica.run(replica.change(remove=leaving))
        replica.delimit()
        for key in replica.replicas[: 2 if signed else 1]:
            replica.run(replica.signature(key), by=key)
        given = {"head": replica.signature(leaving), "tick": Tick(), "delimiter": Delimiter(3, 1)}[what]
        return Play(replica, replica.entry(given, by=leaving))

    def make_announcement(self, rules: int = 2) -> Play:
        replica, _ = self._lived_in()
        return Play(replica, replica.entry(AnnounceRules(rules), by=replica.replicas[2]))


def _policy(keys: Sequence[Key], threshold: int) -> dict[str, Any]:
    return {"policy": encoding.policy_message(policy_of(keys, threshold))}


_SPOILED: Mapping[str, Callable[[Replica], dict[str, Any]]] = {
    "for another place": lambda _: {"base": derive("another head")},
    "too late": lambda replica: {"not_after_ms": replica.clock_ms - 1},
    "two at once": lambda replica: _policy([*replica.replicas[:2], Key("r3"), Key("r4")], 3),
    "r2 alone": lambda replica: _policy([replica.replicas[2]], 1),
    "any one suffices": lambda replica: _policy([*replica.replicas, Key("r3")], 1),
}


def _changed(head: bytes, **fields: Any) -> bytes:
    """A head with some fields replaced."""
    message = types_pb2.EpochHead.FromString(head)
    for name, value in fields.items():
        setattr(message, name, value)
    return canonical(message)
