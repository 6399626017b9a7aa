"""Members of etcd for the tests of one module: started before the first that asks, ended after the last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from etcd_members import EtcdMembers


def running_members(count: int, *flags: str) -> Any:
    """A fixture of the module that calls this; see EtcdMembers."""

    @pytest.fixture(scope="module")
    def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdMembers]:
        with EtcdMembers(tmp_path_factory.mktemp("etcd"), count, *flags).running() as running:
            yield running

    return members
