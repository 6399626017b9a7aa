"""The etcd engine passes the checks of every log: on one member, each check below a prefix of its own."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from clusters import stopping
from etcd_members import EtcdMembers
from etcd_members.fixtures import running_members

from replication.etcd.log import open_etcd_log
from replication.testing import CHECKS, OpenLog, public_half

members = running_members(1)


def opener(members: EtcdMembers, directory: Path) -> OpenLog:
    return stopping(
        lambda: open_etcd_log(
            directory / "log",
            public_half,
            member="r1",
            replicas=["r1"],
            endpoints=members.endpoints(),
            tls=members.tls,
            prefix=f"/test/{directory.name}/",
        )
    )


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_log_conforms(
    tmp_path: Path, members: EtcdMembers, check: Callable[[OpenLog], Awaitable[None]]
) -> None:
    await check(opener(members, tmp_path))
