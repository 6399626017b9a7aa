"""The raft log beyond what every engine promises: no leader, floods, failing disks, renewed files."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing
from clusters.certificates import PeersAuthority
from clusters.checks import agree, leader_of, say, start_all
from clusters.raft import PATIENT, TIMING, RaftCluster, raft_clusters
from clusters.wires import dial, is_hung_up

import replication.raft.log as log_module
from keyserver.demo.processes import free_port
from kv.interface import StorageError, Store
from kv.memory import MemoryDisk, MemoryStore
from kv.testing import Fault, FaultyStore
from replication.raft.events import Timing
from replication.raft.frames import framed
from replication.raft.journal import Journal
from replication.raft.log import RaftLog, open_raft_log
from replication.raft.rows import RaftTables
from replication.raft.tls import read_contexts
from replication.raft.transport import Address
from replication.testing import HANGS_AFTER_S, LETTERS, NO_LIMIT, propose_all, public_half, take
from replication.types import LogNotRunning, LogOverloaded, NoLeader, ProposalLost, TlsFilesRefused

HOST = "127.0.0.1"


def lone_member(folder: Path, store: Store, members: tuple[str, ...]) -> RaftLog:
    """The log of r1; of other members nobody is there."""
    return RaftLog(
        Journal(store, public_half),
        member="r1",
        members={name: Address(HOST, free_port()) for name in members},
        listen=Address(HOST, 0),
        tls=PeersAuthority(folder / "peers").member("r1"),
        timing=TIMING,
        on_refused=lambda _address, _reason: None,
    )


@asynccontextmanager
async def alone(
    folder: Path, store: Store | None = None, members: tuple[str, ...] = ("r1",)
) -> AsyncIterator[RaftLog]:
    """The same, running."""
    log = lone_member(folder, store or MemoryStore(), members)
    try:
        await log.start(1)
        yield log
    finally:
        await log.stop()


# Proposals


async def test_without_a_majority_a_proposal_is_refused_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "LEADERLESS_S", 0.05)
    async with alone(tmp_path, members=("r1", "r2", "r3")) as log:
        with pytest.raises(NoLeader):
            await log.propose(b"in vain")
        assert not log.leader_hint()
        status = log.status()
        assert (status.running, status.leader_name, status.committed_index) == (True, "", 0)
        assert [(member.name, member.connected, member.heard_s) for member in status.members] == [
            ("r2", False, None),
            ("r3", False, None),
        ]


async def test_a_leader_that_is_heard_and_out_of_reach_is_not_asked_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a wrong address or a firewall that lets one direction through."""
    monkeypatch.setattr(log_module, "LEADERLESS_S", 0.5)
    async with raft_clusters(tmp_path, PATIENT)(3) as cluster:
        logs = await start_all(cluster)
        leader = await leader_of(logs)
        name = next(name for name in cluster.names if name != leader)
        await say(logs[name], b"within reach")
        log_of(cluster, name)._driver._engine.outbox.reached.discard(leader)
        with trio.fail_after(HANGS_AFTER_S), pytest.raises(NoLeader, match="out of reach"):
            await logs[name].propose(b"in vain")
        assert logs[name].status().leader_name == leader
        assert b"in vain" not in await agree({leader: logs[leader]}, b"end")


async def test_a_proposal_waits_for_the_election(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "LEADERLESS_S", HANGS_AFTER_S)
    async with raft_clusters(tmp_path, PATIENT)(3) as cluster:
        first = await cluster.start("r1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.propose, b"early")
            await trio.testing.wait_all_tasks_blocked()
            await cluster.start("r2")
        assert [entry.payload for entry in await take(first, 1)] == [b"early"]


async def test_a_leader_left_alone_says_that_it_does_not_know(tmp_path: Path) -> None:
    """Before it notices that it is alone: then it would say that there is no leader."""
    async with raft_clusters(tmp_path, replace(PATIENT, settle_s=1.0))(3) as cluster:
        logs = await start_all(cluster)
        leader = await leader_of(logs)
        for name in cluster.names:
            if name != leader:
                await cluster.kill(name)
        with trio.fail_after(HANGS_AFTER_S), pytest.raises(ProposalLost):
            await logs[leader].propose(b"perhaps")


async def test_who_stops_or_is_asked_to_leaves_the_lead_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With elections that take longer than the test may."""
    longer = 10 * HANGS_AFTER_S
    slow = Timing(election_min_s=longer, election_max_s=2 * longer, quorum_s=2 * longer)
    monkeypatch.setattr(log_module, "HAND_OVER_S", longer)
    async with raft_clusters(tmp_path, PATIENT)(3) as cluster:
        logs = await start_all(cluster)
        first = await leader_of(logs)
        for log in logs.values():
            log._driver._engine._timing = slow  # type: ignore[attr-defined]  # once there is a leader
        with trio.fail_after(HANGS_AFTER_S):
            logs[first].hand_over()
            await say(logs[first], b"one")
            while (second := await leader_of(logs)) == first:
                await trio.lowlevel.checkpoint()
            await cluster.stop(second)
            del logs[second]
            assert await leader_of(logs) != second
            await say(next(iter(logs.values())), b"two")


async def test_a_flood_of_proposals_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "WAITING_BYTES_MAX", 100)
    refused: list[int] = []

    async def propose(log: RaftLog, number: int) -> None:
        try:
            await log.propose(b"x" * 10)
        except LogOverloaded:
            refused.append(number)

    async with alone(tmp_path) as log:
        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(propose, log, number)
        assert len(refused) == 20
        await log.propose(b"x" * 100)
        assert log.status().committed_index == 11


async def test_whoever_waits_for_a_leader_hears_that_the_log_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "LEADERLESS_S", HANGS_AFTER_S)
    refused = 0

    async def propose(log: RaftLog) -> None:
        nonlocal refused
        with pytest.raises(LogNotRunning):
            await log.propose(b"in vain")
        refused += 1

    async with alone(tmp_path, members=("r1", "r2")) as log, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(propose, log)
        await trio.testing.wait_all_tasks_blocked()
        await log.stop()
    assert refused == 3


# A failing disk


@pytest.mark.parametrize("fault", [Fault.WRITE_ERROR_AND_APPLIED, Fault.WRITE_ERROR_AND_NOT_APPLIED])
async def test_a_failed_write_halts_everybody(tmp_path: Path, fault: Fault) -> None:
    disk = MemoryDisk()
    said: set[bytes] = set()
    halted: list[str] = []

    async def propose(log: RaftLog, payload: bytes) -> None:
        try:
            await log.propose(payload)
            said.add(payload)
        except StorageError:
            halted.append("propose")

    async def follow(log: RaftLog) -> None:
        with suppress(StorageError):
            async for _ in log.committed():
                pass
        halted.append("committed")

    async with alone(tmp_path, FaultyStore(MemoryStore(disk), fault, after=12)) as log:
        with trio.fail_after(HANGS_AFTER_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(follow, log)
                while "committed" not in halted:
                    await propose(log, b"%d" % len(said))
                    await trio.lowlevel.checkpoint()
        assert set(halted) == {"committed", "propose"}
        assert not log.leader_hint()
        assert not log.status().running
        for call in (lambda: log.read(1, 2, NO_LIMIT), lambda: log.verify_chain(1, 2)):
            with pytest.raises(StorageError):
                call()
        with pytest.raises(StorageError):
            await log.rewrite_private(1, b"0|")
    async with alone(tmp_path, MemoryStore(disk)) as log:
        await log.propose(b"end")
        assert said <= {entry.payload for entry in log.read(1, 999, NO_LIMIT)}


async def test_a_member_whose_disk_failed_is_silent_and_the_others_go_on(tmp_path: Path) -> None:
    async with raft_clusters(tmp_path)(3) as cluster:
        logs = await start_all(cluster)
        failed = await leader_of(logs)
        journal = log_of(cluster, failed)._journal
        journal._store = FaultyStore(journal._store, Fault.WRITE_ERROR_AND_NOT_APPLIED)
        with pytest.raises(StorageError):
            await say(logs[failed], b"the last")
        others = {name: log for name, log in logs.items() if name != failed}
        await say(next(iter(others.values())), b"go on")
        await agree(others, b"end")


def log_of(cluster: RaftCluster, name: str) -> RaftLog:
    return cluster.running[name]


# The port


async def test_what_a_member_says_wrongly_ends_its_link_and_no_log(tmp_path: Path) -> None:
    authority = PeersAuthority(tmp_path / "peers")
    refused: list[str] = []
    port = free_port()
    log = open_raft_log(
        tmp_path / "log",
        public_half,
        member="r1",
        members={"r1": f"{HOST}:{port}", "r2": f"{HOST}:{free_port()}"},
        listen=f"{HOST}:{port}",
        tls=authority.member("r1"),
        timing=TIMING,
        on_refused=lambda _address, reason: refused.append(reason),
    )
    await log.start(1)
    contexts = read_contexts(authority.member("r2"))
    for said in (framed(b"garbage"), framed(b"\x3a\x02\x08\x07\x82\x01\x00"), b"\xff" * 4):
        async with dial(Address(HOST, port), contexts) as link:
            assert await link.receive_some(4) == bytes(4)
            await link.send_all(said)
            assert await is_hung_up(link)
    assert refused == [
        "bytes that are no message",
        "a message that is not in its deterministic encoding",
        "a frame beyond the limit",
    ]
    async with dial(Address(HOST, port), contexts) as link:
        assert await link.receive_some(4) == bytes(4)
    assert log.status().running
    assert log.status().members[0].heard_s is not None
    await log.stop()


async def test_a_port_that_is_taken_is_an_error_and_can_be_tried_again(tmp_path: Path) -> None:
    (taken,) = await trio.open_tcp_listeners(0, host=HOST)
    port = taken.socket.getsockname()[1]
    log = open_raft_log(
        tmp_path / "log",
        public_half,
        member="r1",
        members={"r1": f"{HOST}:{port}", "r2": f"{HOST}:{port}"},
        listen=f"{HOST}:{port}",
        tls=PeersAuthority(tmp_path / "peers").member("r1"),
    )
    with pytest.raises(OSError, match="in use"):
        await log.start(1)
    await taken.aclose()
    await log.start(1)
    await log.stop()


async def test_files_that_do_not_fit_leave_the_earlier_in_use(tmp_path: Path) -> None:
    authority = PeersAuthority(tmp_path / "peers")
    files = authority.member("r1")
    async with alone(tmp_path) as log:
        log._tls = replace(files, key=authority.member("r2").key)
        with pytest.raises(TlsFilesRefused):
            log.renew_tls()
        log._tls = files
        log.renew_tls()
        await log.propose(b"as ever")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"members": {"r2": "r2:1"}}, ValueError),
        ({"members": {"r1": "r1"}}, ValueError),
        ({"listen": "nowhere"}, ValueError),
        ({"create": False}, StorageError),
    ],
)
def test_what_makes_no_member_is_refused_and_gives_the_directory_free(
    tmp_path: Path, change: dict[str, object], error: type[Exception]
) -> None:
    fitting: dict[str, object] = {
        "member": "r1",
        "members": {"r1": "localhost:1"},
        "listen": "localhost:0",
        "tls": PeersAuthority(tmp_path / "peers").member("r1"),
    }
    with pytest.raises(error):
        open_raft_log(tmp_path / "log", public_half, **{**fitting, **change})  # type: ignore[arg-type]
    if error is ValueError:
        open_raft_log(tmp_path / "log", public_half, **fitting)._journal.close()  # type: ignore[arg-type]


# Status


async def test_status_tells_who_leads_and_how_far_everybody_is(tmp_path: Path) -> None:
    async with raft_clusters(tmp_path, PATIENT)(3) as cluster:
        logs = await start_all(cluster)
        leader = await leader_of(logs)
        await propose_all(logs[leader], LETTERS)
        count = len(await agree(logs, b"end")) + 1
        status = logs[leader].status()
        assert (status.engine, status.role, status.leader_name) == ("raft", "leader", leader)
        assert (status.leader, status.committed_index, status.stored_index) == (True, count, count)
        assert [member.name for member in status.members] == [n for n in cluster.names if n != leader]
        assert all(member.connected and member.heard_s is not None for member in status.members)
        for name in cluster.names:
            if name != leader:
                other = logs[name].status()
                assert (other.role, other.leader_name, other.term) == ("follower", leader, status.term)


# Starting again


async def test_what_was_applied_is_read_before_a_leader_is_known(tmp_path: Path) -> None:
    """The durable commit index may lag behind; the caller of start() knows better."""
    disk = MemoryDisk()
    async with alone(tmp_path, MemoryStore(disk)) as log:
        await propose_all(log, [b"a|alice", b"b|bob"])
    disk.view = disk.view.changed({RaftTables.COMMIT.key(): None})
    log = lone_member(tmp_path, MemoryStore(disk), ("r1", "r2"))
    await log.start(3)
    assert not log.status().leader_name
    assert [entry.payload for entry in log.read(1, 9, NO_LIMIT)] == [b"a|alice", b"b|bob"]
    log.verify_chain(1, 3)
    await log.rewrite_private(1, b"a|")
    assert [entry.payload for entry in log.read(1, 2, NO_LIMIT)] == [b"a|"]
    await log.stop()
