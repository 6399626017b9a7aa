"""The machine against a dumb twin: a dict of users, a list of snapshots, a list for the verifiers.

Hypothesis chooses what happens next and shrinks what goes wrong. Nothing of the twin is signed, hashed or
kept.
"""

from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.strategies import booleans, integers, sampled_from
from workload.cast import User, draft
from workload.replica import MIN_INTERVAL_MS, Replica

from keyserver.machine import views
from keyserver.machine.codes import Code
from keyserver.machine.commands import Delimiter, SubmitUpdate, Tick
from keyserver.machine.obligations import Facts, OweDelimiter, OweSignature, wanted
from keyserver.machine.state import load_position, load_state
from verifier import proof_encoding
from verifier.crypto.hashing import entry_hash
from verifier.encoding import decode_entry
from verifier.merkle.proof import root_from_path
from verifier.types import EpochStep, UpdateStep

NAMES = sampled_from([f"user {number}" for number in range(6)])


class Twin(RuleBasedStateMachine):
    """Three replicas of which any may be silent; users that register, update, revoke, come back."""

    def __init__(self) -> None:
        super().__init__()
        self.replica = Replica(3)
        self.now: dict[bytes, bytes] = {}  # index -> entry, this epoch's included
        self.touched: set[bytes] = set()  # since the newest delimiter
        self.epochs: list[dict[bytes, bytes]] = []  # the directory at each epoch
        self.signed: set[int] = set()  # numbers of replicas that signed the newest head
        self.shown: list[object] = []  # what verifiers saw, in order
        self.waiting: list[object] = []  # what they will see after the next majority

    @property
    def is_signed(self) -> bool:
        return not self.epochs or len(self.signed) >= 2

    def expected(self, index: bytes, revocation: bool, endorsed: bool) -> Code:
        """The update law in a few words, for updates that are rightly signed."""
        if index in self.touched:
            return Code.UPDATE_PENDING
        entry = self.now.get(index)
        if entry is not None and not decode_entry(entry).revocation:
            return Code.APPLIED
        if revocation:
            return Code.VERSION_MISMATCH if entry is None else Code.REVOKED
        return Code.APPLIED if endorsed else Code.PROOF_REQUIRED

    @rule(name=NAMES, revocation=booleans(), endorsed=booleans())
    def submit(self, name: str, revocation: bool, endorsed: bool) -> None:
        user = User.named(name)
        entry = self.now.get(user.index)
        if entry is not None:
            user.accepted(entry)
        made = draft(
            self.replica.realm,
            user,
            revocation=revocation,
            endorsers=self.replica.endorsers if endorsed else (),
            label=len(self.epochs),
        )
        code = self.replica.submit(made)
        assert code is self.expected(user.index, revocation, endorsed)
        if code is Code.APPLIED:
            self.now[user.index] = made.entry
            self.touched.add(user.index)
            (self.shown if self.is_signed else self.waiting).append(made.entry)

    @rule(name=NAMES)
    def submit_the_same_again(self, name: str) -> None:
        current = views.current_entry(self.replica.store, User.named(name).index)
        assert (current is None) == (User.named(name).index not in self.now)
        if current is not None:
            before = self.replica.state
            assert self.replica.run(SubmitUpdate(current.update)) == (Code.APPLIED,)
            assert self.replica.state == before

    @rule(number=sampled_from((0, 1, 2)), ahead_ms=integers(-5000, 5000))
    def tick(self, number: int, ahead_ms: int) -> None:
        key = self.replica.replicas[number]
        self.replica.run(Tick(), by=key, time_ms=self.replica.clock_ms + ahead_ms)

    @rule(early=booleans())
    def delimit(self, early: bool) -> None:
        replica = self.replica
        if not early:
            replica.clock_ms += MIN_INTERVAL_MS
        replica.tick_all()
        enough = replica.clock_ms >= replica.state.issue_time_ms + MIN_INTERVAL_MS
        (code,) = replica.run(Delimiter(len(self.epochs) + 1, replica.clock_ms))
        assert (code is Code.APPLIED) == (enough and self.is_signed)
        if code is Code.APPLIED:
            self.epochs.append(dict(self.now))
            self.touched, self.signed = set(), set()

    @precondition(lambda self: self.epochs)
    @rule(number=sampled_from((0, 1, 2)))
    def sign(self, number: int) -> None:
        key = self.replica.replicas[number]
        (code,) = self.replica.run(self.replica.signature(key), by=key)
        assert (code is Code.APPLIED) == (number not in self.signed)
        before = self.is_signed
        self.signed.add(number)
        if self.is_signed and not before:
            self.shown += [len(self.epochs), *self.waiting]
            self.waiting = []

    @rule()
    def restart(self) -> None:
        assert load_state(self.replica.store, self.replica.machine) == self.replica.state
        assert load_position(self.replica.store) == self.replica.position

    @precondition(lambda self: self.epochs)
    @rule(name=NAMES)
    def look_up_in_every_epoch(self, name: str) -> None:
        user = User.named(name)
        for epoch, directory in enumerate(self.epochs, 1):
            parts = views.lookup_parts(self.replica.store, user.index, epoch)
            assert parts.entry == directory.get(user.index, b"")
            present = (user.index, entry_hash(parts.entry))
            leaf = present if parts.entry else parts.existing
            root = root_from_path(user.index, leaf, parts.neighbors)
            assert root == self.replica.head(epoch).root_hash

    @invariant()
    def state_counts_what_the_twin_counts(self) -> None:
        state = self.replica.state
        assert state.epoch == len(self.epochs)
        assert state.is_signed == self.is_signed
        assert state.pending_updates == len(self.touched)
        assert state.parked_updates == len(self.waiting)
        assert state.verifier_log_size == len(self.shown)

    @invariant()
    def what_is_owed_follows_from_what_is_there(self) -> None:
        replica = self.replica
        for number, key in enumerate(replica.replicas):
            facts = Facts(replica.clock_ms, key.id, True, 10 * MIN_INTERVAL_MS)
            owed = wanted(replica.store, replica.machine, replica.state, facts)
            newest = [o for o in owed if isinstance(o, OweSignature) and o.epoch == len(self.epochs)]
            assert bool(newest) == bool(self.epochs and number not in self.signed)
            if not self.is_signed:
                assert not any(isinstance(o, OweDelimiter) for o in owed)

    def teardown(self) -> None:
        steps = views.verifier_steps(self.replica.store, 1, 2**30, 2**30)
        seen: list[object] = []
        for number, step in enumerate(map(proof_encoding.decode_step, steps), 1):
            assert step.index == number
            match step:
                case UpdateStep():
                    seen.append(step.update.entry.encoded)
                case EpochStep():
                    seen.append(step.head.head.epoch)
        assert seen == self.shown


Twin.TestCase.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
TestTwin = Twin.TestCase
