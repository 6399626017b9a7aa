"""People who register and update without end, whatever happens to the servers, and believe only proofs."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

from e2eks.v1 import verification_pb2

from keyserver.demo.processes import wait_until
from realm_processes.ledger import Acknowledged, Ledger, SeenSignatures
from realm_processes.people import connect, now_ms
from realm_processes.realm import RATIFIED_HEADS, VERIFICATION, RealmProcesses
from verifier import encoding
from verifier.client.client import Answer, Client
from verifier.client.drafts import Draft
from verifier.client.outcome import Unreachable
from verifier.client.pins import MemoryPins
from verifier.crypto.signatures import SigningKey
from verifier.errors import NotRatified, Reason, Refused
from verifier.lookup import LookupResult, Present
from verifier.types import Realm, SignedHead

T = TypeVar("T")

VERSIONS = 4  # of each user, in one run
CALL_S = 20.0
PAUSE_S = 0.02
REFUSED_PAUSE_S = 0.15  # replicas bear ten updates of one name in a second, from one address
# What a client may be told while a realm comes back. All else under load is a broken promise.
PASSING = {Reason.NOT_READY, Reason.NOT_RATIFIED_IN_TIME, Reason.EPOCH_PENDING}


@dataclass
class Load:
    """`people` threads at work; `failures` are the texts of what must not happen."""

    realm: RealmProcesses
    ledger: Ledger
    seen: SeenSignatures
    name: str
    failures: list[str] = field(default_factory=list)
    newest: int = 0
    newest_issued_ms: int = 0
    acknowledged: int = 0
    longest_wait_s: float = 0.0  # between two promises
    in_order: bool = True
    _last: float = field(default_factory=time.monotonic)
    _stop: threading.Event = field(default_factory=threading.Event)
    _moved: threading.Condition = field(default_factory=threading.Condition)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._followers = [Follower(self, name) for name in self.realm.replicas]

    def start(self, people: int) -> None:
        for number in range(people):
            self._run(Worker(self, number).work)
        for follower in self._followers:
            self._run(follower.work)

    def stop(self, *, in_order: bool = True) -> None:
        """Let everybody finish what was begun; unless `in_order`, nothing more is asked of replicas."""
        self.in_order = in_order
        self._stop.set()
        for thread in self._threads:
            thread.join()
        shown = sorted((follower.steps for follower in self._followers), key=len)
        if any(longer[: len(shorter)] != shorter for shorter, longer in pairwise(shown)):
            self.failures.append("two replicas serve different verifier logs")

    def find_lost(self, promises: Sequence[Acknowledged]) -> list[str]:
        """Promises that a replica's verifier log, as it was shown, has passed over."""
        return [text for follower in self._followers for text in follower.find_lost(promises)]

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def pause(self, seconds: float) -> None:
        """Wait, but not when everything is over."""
        self._stop.wait(seconds)

    def wait_beyond(self, number: int, deadline_s: float = 60.0) -> None:
        """Return once an update was acknowledged in an epoch above `number`. Raises AssertionError."""
        self._wait(lambda: self.newest > number, f"no epoch after {number} was ratified", deadline_s)

    def wait_issued_from_now(self, deadline_s: float = 60.0) -> float:
        """Return once an update was acknowledged in an epoch issued from now on: after how many seconds."""
        begin, begin_ms = time.monotonic(), now_ms()
        self._wait(lambda: self.newest_issued_ms >= begin_ms, "no new epoch was ratified", deadline_s)
        return time.monotonic() - begin

    def _wait(self, moved: Callable[[], bool], problem: str, deadline_s: float) -> None:
        with self._moved:
            done = self._moved.wait_for(lambda: moved() or self.failures, deadline_s)
        assert not self.failures, self.failures
        assert done, f"{problem} within {deadline_s} s"

    def acknowledge(self, draft: Draft, answer: Answer) -> None:
        """Write down what a client was promised."""
        number, entry = answer.result.head.head.epoch, draft.update.entry
        promise = Acknowledged(draft.user_id, entry.version, number, entry.encoded.hex(), draft.profile.hex())
        self.ledger.write(promise)
        self.seen.see(answer.result.head, "an answer")
        with self._moved:
            self.acknowledged += 1
            self.newest = max(self.newest, number)
            self.newest_issued_ms = max(self.newest_issued_ms, answer.result.head.head.issue_time_ms)
            last, self._last = self._last, time.monotonic()
            self.longest_wait_s = max(self.longest_wait_s, self._last - last)
            self._moved.notify_all()

    def _run(self, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except BaseException:
                self.failures.append(traceback.format_exc())
                with self._moved:
                    self._moved.notify_all()

        thread = threading.Thread(target=guarded)
        self._threads.append(thread)
        thread.start()


class Worker:
    """One device: it remembers what it has seen, over all connections."""

    def __init__(self, load: Load, number: int) -> None:
        self._load = load
        self._number = number
        self._pins = MemoryPins()
        self._known = load.realm.realm()

    def _realm(self) -> Realm:
        """The realm it has always known, where the replicas are today; each device begins at another one."""
        addresses = self._load.realm.addresses
        first = self._number % len(addresses)
        return replace(self._known, addresses=addresses[first:] + addresses[:first])

    def work(self) -> None:
        """Register a user, change its keys a few times, take the next."""
        turn = 0
        while not self._load.stopped:
            turn += 1
            name = f"{self._load.name}-{self._number}-{turn}@{self._known.domains[0]}"
            key = SigningKey((self._number << 32 | turn).to_bytes(32, "big"))
            self._live(name, key)

    def _live(self, name: str, key: SigningKey) -> None:
        for version in range(VERSIONS):
            if self._load.stopped:
                return
            keys = {"ssh": f"{name} {version}".encode()}

            def draft(client: Client, of: int = version, keys: dict[str, bytes] = keys) -> Draft:
                made = client.draft_update if of else client.draft_registration
                return made(name, keys, [key])

            prepared = self._persist(draft)
            if prepared is None:
                return
            answer = self._persist(partial(_submit, prepared))
            if answer is not None:
                self._load.acknowledge(prepared, answer)

    def _persist(self, ask: Callable[[Client], T]) -> T | None:
        """Ask until there is an answer, each time over a new connection; None once everything is over."""
        while True:
            client, transport = connect(self._realm(), pins=self._pins, timeout_s=CALL_S)
            pause_s = PAUSE_S
            with transport:
                try:
                    return ask(client)
                except Unreachable:
                    pass
                except NotRatified as error:
                    if error.cause == "rollback" and len(self._load.realm.replicas) == 1:
                        raise  # of several replicas, one may be behind while the others are away
                except Refused as refused:
                    if refused.reason not in PASSING:
                        raise
                    pause_s = REFUSED_PAUSE_S
            if self._load.stopped:
                return None
            self._load.pause(pause_s)


def _submit(draft: Draft, client: Client) -> Answer:
    return client.submit(draft)


class Follower:
    """A reader of one replica's verifier log that never forgets a step."""

    def __init__(self, load: Load, replica: str) -> None:
        self._load = load
        self._replica = replica
        self.steps: list[bytes] = []

    def work(self) -> None:
        """Follow, over as many connections as it takes, until everything is over; then read it all anew."""
        while not self._load.stopped:
            self._read(len(self.steps) + 1)
            self._load.pause(PAUSE_S)
        if not self._load.in_order or self._replica not in self._load.realm.replicas:
            return  # it may be dead, or another took its place
        anew = Follower(self._load, self._replica)
        wait_until(lambda: anew._has_read(len(self.steps)), f"{self._replica} to show its verifier log again")
        assert anew.steps[: len(self.steps)] == self.steps, "the verifier log was changed after it was shown"
        self.steps = anew.steps

    def find_lost(self, promises: Sequence[Acknowledged]) -> list[str]:
        """Of the promises in epochs whose end this replica has shown, those that it has not shown."""
        entries, newest = set(), 0
        for step in map(verification_pb2.VerifierStep.FromString, self.steps):
            if step.HasField("epoch"):
                newest = head_of(step).head.epoch
            else:
                entries.add(step.update.entry.hex())
        return [
            f"{self._replica} is past epoch {promise.epoch} without a version {promise.version} promised then"
            for promise in promises
            if promise.epoch <= newest and promise.entry not in entries
        ]

    def _has_read(self, steps: int) -> bool:
        """Read on; tell whether there are so many. The replica may be starting."""
        self._read(len(self.steps) + 1)
        return len(self.steps) >= steps

    def _read(self, start: int) -> None:
        request = verification_pb2.VerifierStreamRequest(start=start, page_size=2**62)
        path = VERIFICATION + "VerifierStream"
        door = self._load.realm.verification(self._replica)
        messages, _ = door.stream(path, request.SerializeToString())
        for message in messages:
            for step in verification_pb2.VerifierSteps.FromString(message).steps:
                assert step.index == len(self.steps) + 1, "a step is missing from the verifier log"
                self.steps.append(step.SerializeToString(deterministic=True))
                if step.HasField("epoch"):
                    self._load.seen.see(head_of(step), "the verifier log")


def head_of(step: verification_pb2.VerifierStep) -> SignedHead:
    return encoding.decode_signed_head(step.epoch.SerializeToString(deterministic=True))


def check_promises(load: Load, promises: Sequence[Acknowledged]) -> None:
    """Every promise is proven at its own epoch, and nothing older is shown today."""
    realm = replace(load.realm.realm(), addresses=load.realm.addresses)
    client, transport = connect(realm)
    with transport:
        newest: dict[str, int] = {}
        for promise in promises:
            newest[promise.user_id] = max(promise.version, newest.get(promise.user_id, 0))
            then = client.lookup(promise.user_id, epoch=promise.epoch)
            assert shown(then) == (promise.entry, promise.profile), f"version {promise.version} was lost"
            load.seen.see(then.head, "a historic lookup")
        for user_id, version in newest.items():
            today = client.lookup(user_id)
            assert isinstance(today, Present), "an acknowledged user is gone"
            assert today.entry.version >= version, "an acknowledged version is gone"


def shown(result: LookupResult) -> tuple[str, str] | None:
    """Entry and profile of a result, hex."""
    if not isinstance(result, Present):
        return None
    return result.entry.encoded.hex(), result.profile.encoded.hex()


def see_ratified_heads(realm: RealmProcesses, name: str, epochs: range, seen: SeenSignatures) -> None:
    """See what a verifier serves of each of its ratifications in these epochs, the last once it is there."""
    door = realm.ratified_heads(name)
    newest = verification_pb2.RatifiedHeadRequest(epoch=epochs[-1]).SerializeToString()
    ratified = f"{name} to ratify {epochs[-1]}"
    wait_until(lambda: door.call(RATIFIED_HEADS + "Get", newest).code == "OK", ratified)
    with door.channel() as channel:
        rpc: Any = channel.unary_unary(RATIFIED_HEADS + "Get")
        for number in epochs:
            request = verification_pb2.RatifiedHeadRequest(epoch=number).SerializeToString()
            seen.see(encoding.decode_signed_head(rpc(request, timeout=CALL_S)), f"{name}'s RatifiedHeads")
