"""One replica in memory, driven entry by entry, and the commands an honest cluster would propose to it."""

from collections.abc import Sequence
from typing import Any, Unpack

from e2eks.v1 import types_pb2

from keyserver.machine import commands, views
from keyserver.machine.codes import Code
from keyserver.machine.commands import (
    AddRatification,
    AdmitVerifier,
    ChangeReplicas,
    Command,
    Delimiter,
    SignHead,
)
from keyserver.machine.rows import policy_of_epoch
from keyserver.machine.state import GENESIS_POSITION, Machine, genesis_state
from keyserver.machine.step import Outcome, apply
from keyserver.machine.turn import clock_of
from kv.memory import MemoryStore
from verifier import encoding, limits, replica_set
from verifier.epoch import replica_message, verifier_message
from verifier.types import EpochHead, Ratification
from workload.cast import Changes, Draft, Key, User, draft, make_realm

START_MS = 1_700_000_000_000
MIN_INTERVAL_MS = 1000


class Replica:
    """Applies what it is given to rows in memory, and keeps the log. All clocks read `clock_ms`."""

    def __init__(self, replicas: int = 1, verifiers: int = 2, *, name: str = "test") -> None:
        genesis = [Key(name, "replica", number) for number in range(replicas)]
        self.known = {key.id: key for key in genesis}  # replicas of any time, and those named by a change
        self.verifiers = [Key(name, "verifier", number) for number in range(verifiers)]
        self.realm = make_realm(genesis, self.verifiers)
        self.machine = Machine(self.realm, MIN_INTERVAL_MS)
        self.store = MemoryStore()
        self.state = genesis_state(self.machine)
        self.position = GENESIS_POSITION
        self.clock_ms = START_MS
        self.log: list[bytes] = []
        self.outcomes: list[Outcome] = []

    @property
    def replicas(self) -> list[Key]:
        """Those of the policy that holds now, in its order."""
        return [self.known[key_id] for key_id in self.state.policy.keys]

    # Entries

    def entry(
        self,
        *given: Command | bytes,
        by: Key | None = None,
        time_ms: int | None = None,
        parts: Sequence[bytes] = (),
        rules: int | None = None,
    ) -> bytes:
        """The payload of a signed entry around the commands, by the first replica unless said otherwise."""
        key = by or self.replicas[0]
        wire = [one if isinstance(one, bytes) else commands.encode_command(one) for one in given]
        time = self.clock_ms if time_ms is None else time_ms
        level = self.state.rules if rules is None else rules
        encoded = commands.encode_envelope(replica=key.id, time_ms=time, commands=wire, rules=level)
        message = commands.envelope_message(self.realm.hash, encoded)
        return commands.encode_log_entry(encoded, key.sign(message), parts)

    def commit(self, payload: bytes) -> Outcome:
        """Apply a payload and write what it changes."""
        outcome = apply(self.store, self.machine, self.state, self.position, payload)
        self.store.write(outcome.writes)
        self.state, self.position = outcome.state, outcome.position
        self.log.append(payload)
        self.outcomes.append(outcome)
        return outcome

    def run(
        self, *given: Command | bytes, by: Key | None = None, time_ms: int | None = None
    ) -> tuple[Code, ...]:
        """Commit one entry with these commands; the verdicts."""
        return self.commit(self.entry(*given, by=by, time_ms=time_ms)).verdicts

    def submit(self, made: Draft, user: User | None = None) -> Code:
        """Commit an update with its private part; `user` learns of it when it is accepted."""
        code = self.commit(self.entry(made.command, parts=(made.part,))).verdicts[0]
        if user is not None and code is Code.APPLIED:
            user.accepted(made.entry)
        return code

    # What an honest cluster does

    @property
    def endorsers(self) -> list[Key]:
        """f + 1 replicas."""
        return self.replicas[: (len(self.replicas) - 1) // 2 + 1]

    def register(self, user: User, **changes: Unpack[Changes]) -> Code:
        """Register a user, lawfully unless changed."""
        options: Changes = {"endorsers": self.endorsers, **changes}
        return self.submit(draft(self.realm, user, **options), user)

    def update(self, user: User, **changes: Unpack[Changes]) -> Code:
        """Update a user's entry, lawfully unless changed."""
        return self.submit(draft(self.realm, user, **changes), user)

    def tick_all(self) -> None:
        """Every replica signs its clock into the log."""
        for key in self.replicas:
            self.run(commands.Tick(), by=key)

    def settle(self) -> None:
        """After a random log: the newest head signed, and all clocks where the one furthest ahead is."""
        if not self.state.is_signed:
            self.sign_all()
        self.clock_ms = max(self.clock_ms, *(clock_of(self.store, key.id) for key in self.replicas))
        self.tick_all()

    def delimit(self) -> Code:
        """A lawful delimiter, after every clock has moved on."""
        self.clock_ms += MIN_INTERVAL_MS
        for key in self.replicas[1:]:
            self.run(commands.Tick(), by=key)
        return self.run(Delimiter(self.state.epoch + 1, self.clock_ms))[0]

    def sign_all(self) -> None:
        """Every replica signs the newest head; first those who leave with it, as long as it needs them."""
        law = policy_of_epoch(self.store, self.realm.genesis_policy, self.state.epoch)
        leaving = [self.known[key_id] for key_id in law.keys if key_id not in self.state.policy.keys]
        for key in (*leaving, *self.replicas) if not self.state.is_signed else self.replicas:
            self.run(self.signature(key), by=key)

    def close_epoch(self) -> EpochHead:
        """Delimit and sign; the head."""
        assert self.delimit() is Code.APPLIED
        self.sign_all()
        return self.head()

    def head(self, epoch: int | None = None) -> EpochHead:
        return views.head_at(self.store, self.state.epoch if epoch is None else epoch)

    def signature(self, key: Key, epoch: int | None = None) -> SignHead:
        """A replica's signature on our head."""
        head = self.head(epoch)
        message = replica_message(head.encoded, head.issue_time_ms)
        return SignHead(head.epoch, head.hash, key.sign(message))

    def admit(self, verifier: Key) -> None:
        """All replicas approve the verifier."""
        for key in self.replicas:
            self.run(AdmitVerifier(verifier.public_key), by=key)

    # Other replicas

    def change(
        self,
        *,
        add: Key | None = None,
        remove: Key | None = None,
        by: Sequence[Key] | None = None,
        **fields: Any,
    ) -> ChangeReplicas:
        """A change of the replicas, approved by all and by the added one; or as said, in some `fields`."""
        made = replica_set.make_change(
            views.policy_base(self.store, self.realm),
            self.state.policy,
            add=add and add.public_key,
            remove=remove and remove.id,
            not_after_ms=self.clock_ms + limits.DAY_MS,
        )
        if fields:
            wire = types_pb2.ReplicaSetChange.FromString(made.encoded)
            wire.MergeFrom(
                types_pb2.ReplicaSetChange(**{name: fields[name] for name in fields if name != "policy"})
            )
            if "policy" in fields:
                wire.policy.CopyFrom(fields["policy"])
            made = replica_set.decode_change(encoding.canonical(wire))
        self.known |= {key.id: key for key in (add,) if key}
        message = replica_set.approval_message(self.realm.hash, made.encoded)
        approvers = [*self.replicas, *([add] if add else [])] if by is None else by
        return ChangeReplicas(made, tuple(key.signature(message) for key in approvers))

    def changed(self, *, add: Key | None = None, remove: Key | None = None) -> EpochHead:
        """Change the replicas, in an epoch that all of the old and the new ones sign; the head."""
        assert self.run(self.change(add=add, remove=remove)) == (Code.APPLIED,)
        assert self.delimit() is Code.APPLIED
        self.sign_all()
        return self.head()

    def ratification(
        self, verifier: Key, head: bytes | None = None, time_ms: int | None = None
    ) -> AddRatification:
        """A verifier's signature on our newest signed head, or on `head`."""
        signed = self.head(self.state.signed_epoch).encoded if head is None else head
        time = self.clock_ms if time_ms is None else time_ms
        made = Ratification(time, (verifier.signature(verifier_message(signed, time)),))
        return AddRatification(encoding.decode_signed_head(encoding.encode_signed_head(signed, [made])))
