"""The etcd engine passes the checks of every log: on one member, each check below a prefix of its own."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from etcd_members import EtcdMembers

from replication.etcd.log import open_etcd_log
from replication.interface import ReplicatedLog
from replication.testing import CHECKS, OpenLog, public_half


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdMembers]:
    started = EtcdMembers(tmp_path_factory.mktemp("etcd"), 1)
    started.start()
    yield started
    started.stop_all()


def opener(members: EtcdMembers, directory: Path) -> OpenLog:
    @asynccontextmanager
    async def open_log() -> AsyncIterator[ReplicatedLog]:
        log = open_etcd_log(
            directory / "log",
            public_half,
            member="r1",
            replicas=["r1"],
            endpoints=members.endpoints(),
            tls=members.tls,
            prefix=f"/test/{directory.name}/",
        )
        try:
            yield log
        finally:
            await log.stop()

    return open_log


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_log_conforms(
    tmp_path: Path, members: EtcdMembers, check: Callable[[OpenLog], Awaitable[None]]
) -> None:
    await check(opener(members, tmp_path))
