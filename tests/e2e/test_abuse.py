"""A replica process under callers that mean harm, an honest caller beside them: HTTP/2 frames by hand, over
TLS, and many callers who only wait. The harm comes from another address than the honest caller's, which
Linux allows on loopback.
"""

import gzip
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest
from e2eks.v1 import client_pb2
from hostile import http2
from hostile.http2 import Connection, Frame, frame
from hostile.loads import ENDLESS, LOADS, LOOKUP, SHUT, STREAM, UPDATE, Target, run
from realm_processes.realm import RealmProcesses

from keyserver.demo.processes import wait_until
from keyserver.demo.stage import HOST, REPLICA
from keyserver.testing import Person, SmallRealm
from verifier import encoding, limits

PATIENCE = 60.0
LONG_S = 600  # what waits until a test has seen it
WAITING = 200
LOAD_S = 1.0
BESIDE = 3  # lookups answered before a load ends: all but the first were asked under it
MEMORY_MB = 64
TOO_MANY, OFTEN = 300, "127.0.0.9"  # connections at once, and from where
SHORT = "\n[limits]\nrequest_timeout_ms = 1000\nsend_timeout_ms = 1000\n"
RESOURCE_EXHAUSTED = b"grpc-status\x018"


class Abused(RealmProcesses):
    """A replica alone: no verifier runs, so updates wait for a quorum that does not come."""

    mute = ("v1", "v2", "v3")
    limits = ""

    def set_up(self) -> None:
        super().set_up()
        config = self.config_of(REPLICA)
        config.write_text(f"update_timeout_ms = {1000 * LONG_S}\n{config.read_text()}")

    def is_ratified(self) -> bool:
        return self.epochs() > 0

    @property
    def pid(self) -> int:
        return self.processes.running[REPLICA].pid

    @property
    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/task"))

    @property
    def memory_mb(self) -> float:
        with open(f"/proc/{self.pid}/status") as lines:
            return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))

    def lookup_request(self, name: str = "nobody") -> bytes:
        """A lookup that the replica alone can satisfy."""
        request = client_pb2.LookupRequest(user_id=f"{name}@{self.realm().domains[0]}")
        request.quorum_requirement.CopyFrom(encoding.quorum_message(self.realm().genesis_policy.quorum))
        return request.SerializeToString()

    def person(self, name: str) -> Person:
        vrf_seed = bytes.fromhex((self.replica / "vrf.key").read_text())
        realm = self.realm()
        return Person(f"{name}@{realm.domains[0]}", SmallRealm(realm, b"", vrf_seed, ()))

    @property
    def target(self) -> Target:
        roots = "\n".join(self.realm().tls_roots_pem)
        domain = self.realm().domains[0]
        return Target(self.ports.public, self.ports.verification, roots, f"nobody@{domain}", domain)

    def metric(self, name: str) -> float:
        text = (self.http("/metrics") or b"").decode()
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


@pytest.fixture(scope="module")
def abused(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Abused]:
    """It still runs at the end, has logged no exception, and stops cleanly."""
    stage = Abused(tmp_path_factory.mktemp("abused") / "realm", ("v1", "v2", "v3"))
    try:
        stage.open()
        yield stage
        stage.check_alive()
        assert stage.processes.stop(REPLICA) == 0
        assert "Traceback" not in stage.log_of(REPLICA)
    finally:
        stage.processes.stop_all()


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Abused]:
    """A replica that waits a second for a request to come and for an answer to be taken."""

    class Impatient(Abused):
        limits = SHORT

    stage = Impatient(tmp_path_factory.mktemp("impatient") / "realm", ("v1", "v2", "v3"))
    try:
        stage.open()
        yield stage
        stage.check_alive()
    finally:
        stage.processes.stop_all()


@contextmanager
def honest_lookups(realm: Abused) -> Iterator[Counter[str]]:
    """Lookups one after the other until the end; how they ended."""
    outcomes: Counter[str] = Counter()
    stop = threading.Event()
    request = realm.lookup_request()

    def ask() -> None:
        with realm.public().channel() as channel:
            lookup: Any = channel.unary_unary(LOOKUP)
            while not stop.is_set():
                try:
                    lookup(request, timeout=PATIENCE)
                    outcomes["OK"] += 1
                except grpc.RpcError as error:
                    outcomes[f"{error.code()}"] += 1
                stop.wait(0.005)

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            yield outcomes
        finally:
            stop.set()
            asking.result(PATIENCE)


def test_200_streams_and_200_waiting_updates_hold_no_thread_and_every_lookup_answers(
    abused: Abused, count: Callable[[int], int]
) -> None:
    updates = [abused.person(f"waiting-{number}").update({"ssh": b"1"}) for number in range(WAITING)]
    with (
        abused.verification().channel() as verification,
        abused.public().channel() as public,
        honest_lookups(abused) as outcomes,
    ):
        wait_until(lambda: outcomes["OK"] > 10, "the first lookups")
        before = abused.threads
        follow: Any = verification.unary_stream(STREAM)
        streams = [follow(ENDLESS, timeout=LONG_S) for _ in range(WAITING)]
        for stream in streams:
            assert next(stream)
        send: Any = public.unary_unary(UPDATE)
        waiting = [send.future(update, timeout=LONG_S) for update in updates]
        wait_until(lambda: abused.epochs() > 1, "an epoch with the updates")
        lookup: Any = public.unary_unary(LOOKUP)
        for _ in range(count(100)):
            assert lookup(abused.lookup_request(), timeout=PATIENCE)
        assert not any(update.done() for update in waiting)
        # gRPC's own pool grows while all of it is busy, by a thread a second; 200 callers would be seen.
        assert abused.threads < before + WAITING / 2
        for call in (*waiting, *streams):
            call.cancel()
    assert set(outcomes) == {"OK"}


@pytest.mark.parametrize("name", LOADS)
def test_an_honest_caller_is_answered_beside(name: str, abused: Abused, count: Callable[[int], int]) -> None:
    # From an address of its own each: what one load owes, the next would not be heard for.
    target = replace(abused.target, source=f"127.0.1.{1 + list(LOADS).index(name)}")
    with honest_lookups(abused) as outcomes:
        wait_until(lambda: outcomes["OK"] > 10, "the first lookups")
        idle_mb, enough = abused.memory_mb, outcomes["OK"] + BESIDE

        def goes_on() -> bool:
            return len(outcomes) == 1 and outcomes["OK"] < enough

        done = run(target, name, LOAD_S * count(1), lasting=goes_on)
        grown_mb = abused.memory_mb - idle_mb
    assert done
    assert set(outcomes) == {"OK"}, (outcomes, done)
    assert grown_mb < MEMORY_MB
    abused.check_alive()


def test_who_connects_too_often_is_not_heard_for_a_while_and_all_others_are(abused: Abused) -> None:
    """A hundred may come at once and twenty a second; so many as here owe for ten seconds. The replica looks
    every quarter of a second: perhaps when some have come, and the next is not heard already.
    """
    limit = 'e2eks_rate_limited_total{limit="peer_new_connections"}'
    told = abused.metric(limit)
    with honest_lookups(abused) as outcomes, ExitStack() as stack:

        def is_heard() -> bool:
            try:
                made = socket.create_connection((HOST, abused.ports.public), 0.5, source_address=(OFTEN, 0))
            except TimeoutError:
                return False
            stack.enter_context(made)
            return True

        at_once = all(is_heard() for _ in range(TOO_MANY))
        wait_until(lambda: abused.metric(limit) > told, "the count of a network that is not heard")
        assert not (at_once and is_heard())
        assert abused.public().call(LOOKUP, abused.lookup_request()).code == "OK"
        wait_until(is_heard, "the end of the debt")
    assert set(outcomes) == {"OK"}


def closed_by_server(connection: Connection) -> list[Frame]:
    """What came until the server closed. Raises TimeoutError if it does not."""
    return list(connection.frames())


@pytest.mark.parametrize(("method", "request_of"), [(STREAM, None), (LOOKUP, Abused.lookup_request)])
def test_who_takes_no_answer_loses_the_connection(
    method: str, request_of: Callable[[Abused], bytes] | None, impatient: Abused
) -> None:
    request = request_of(impatient) if request_of else ENDLESS
    port = impatient.ports.verification if method == STREAM else impatient.ports.public
    limit = 'e2eks_rate_limited_total{limit="slow_readers"}'
    cut = impatient.metric(limit)
    with honest_lookups(impatient) as outcomes, impatient.target.connect(port, SHUT) as connection:
        connection.start(method, request)
        seen = closed_by_server(connection)
    assert not any(found.kind == http2.DATA for found in seen)
    wait_until(lambda: impatient.metric(limit) > cut, "the count of a connection that was cut")
    assert impatient.metric(limit) == cut + 1
    assert set(outcomes) == {"OK"}


def test_who_sends_only_headers_is_refused_in_time_and_may_ask_again(impatient: Abused) -> None:
    with impatient.target.connect() as connection:
        stream = connection.next_stream()
        headers = http2.call_headers(UPDATE)
        connection.send(frame(http2.HEADERS, http2.END_HEADERS, stream, headers))
        refused = connection.until_ended(stream)
        assert any(b"did not arrive within 1 s" in found.payload for found in refused)
        answered = connection.until_ended(connection.start(LOOKUP, impatient.lookup_request()))
        assert any(found.kind == http2.DATA for found in answered)


def test_who_sends_half_a_request_is_refused_in_time(impatient: Abused) -> None:
    with impatient.target.connect() as connection:
        stream = connection.next_stream()
        connection.send(frame(http2.HEADERS, http2.END_HEADERS, stream, http2.call_headers(UPDATE)))
        connection.send(frame(http2.DATA, 0, stream, http2.message(b"half", limits.REQUEST_BYTES)))
        refused = connection.until_ended(stream)
        assert any(b"did not arrive within 1 s" in found.payload for found in refused)


def test_a_message_above_the_limit_is_refused_by_its_announced_size(abused: Abused) -> None:
    with abused.target.connect() as connection:
        stream = connection.next_stream()
        connection.send(frame(http2.HEADERS, http2.END_HEADERS, stream, http2.call_headers(UPDATE)))
        connection.send(frame(http2.DATA, 0, stream, http2.message(b"", 4 * 1024 * 1024)))
        refused = connection.until_ended(stream)
        assert any(RESOURCE_EXHAUSTED in found.payload for found in refused)


def test_a_small_message_that_unpacks_to_a_large_one_is_refused(abused: Abused) -> None:
    bomb = gzip.compress(bytes(4 * 1024 * 1024))
    with abused.target.connect() as connection:
        stream = connection.next_stream()
        headers = http2.call_headers(UPDATE, ((b"grpc-encoding", b"gzip"),))
        connection.send(frame(http2.HEADERS, http2.END_HEADERS, stream, headers))
        packed = b"\x01" + len(bomb).to_bytes(4, "big") + bomb
        connection.send(frame(http2.DATA, http2.END_STREAM, stream, packed))
        refused = connection.until_ended(stream)
        assert any(RESOURCE_EXHAUSTED in found.payload for found in refused)


def test_headers_above_the_limit_are_refused(abused: Abused) -> None:
    """From the first answer on: gRPC judges headers by its settings only once they are acknowledged."""
    with abused.target.connect() as connection:
        connection.until_ended(connection.start(LOOKUP, abused.lookup_request()))
        stream = connection.next_stream()
        headers = http2.call_headers(LOOKUP, ((b"x-large", b"a" * 20_000),))
        first, rest = headers[: http2.FRAME_BYTES], headers[http2.FRAME_BYTES :]
        connection.send(frame(http2.HEADERS, 0, stream, first))
        connection.send(frame(http2.CONTINUATION, http2.END_HEADERS, stream, rest))
        refused = connection.until_ended(stream)
        assert any(RESOURCE_EXHAUSTED in found.payload for found in refused)


def test_calls_reset_because_others_were_just_cancelled_may_be_made_again(abused: Abused) -> None:
    """gRPC's clients do so by themselves, once; whom that does not help gets UNAVAILABLE and asks again.
    How many that are depends on how the resets and the new calls meet; all others have their answer.
    """
    door = abused.public()
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(door.address, grpc.ssl_channel_credentials(door.roots), options) as channel:
        lookup: Any = channel.unary_unary(LOOKUP)
        request = abused.lookup_request()
        ended: set[grpc.StatusCode] = set()

        def is_answered() -> bool:
            code = lookup.future(request, timeout=PATIENCE).code()
            ended.add(code)
            return code is grpc.StatusCode.OK

        assert is_answered()
        for call in [lookup.future(request, timeout=PATIENCE) for _ in range(WAITING)]:
            call.cancel()
        calls = [lookup.future(request, timeout=PATIENCE) for _ in range(WAITING)]
        failed = [call.code() for call in calls if call.exception()]
        for _ in failed:
            wait_until(is_answered, "the answer to who asks again")
        assert {*failed, *ended} <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}


def test_more_calls_than_a_connection_may_have_end_it_or_are_reset(abused: Abused) -> None:
    """The server has told its limit; who does not keep it gets no service for what is above."""
    with abused.target.connect(abused.ports.verification) as connection:
        first = connection.start(STREAM, ENDLESS)
        seen = []
        for found in connection.frames():
            seen.append(found)
            if found.kind == http2.DATA and found.stream == first:
                break
        try:
            for _ in range(400):
                connection.start(STREAM, ENDLESS)
            refused = connection.until_ended(connection.start(STREAM, ENDLESS))
        except TimeoutError:
            raise
        except OSError:
            return
        assert any(one.kind in (http2.RST_STREAM, http2.GOAWAY) for one in refused)
