"""A client whose calls fail in every way that a network has, and some that come back from the dead."""

from __future__ import annotations

import random
from typing import Any

from e2eks.etcd import api_pb2 as api

from replication.etcd.client import CALL_S, EtcdClient, EtcdError


class FlakyClient(EtcdClient):
    """Of ten transactions about four fail: carried out, not carried out, or carried out later."""

    def __init__(self, *arguments: Any, rng: random.Random) -> None:
        super().__init__(*arguments)
        self._rng = rng
        self._late: list[api.TxnRequest] = []
        self.failed = self.late = 0

    def txn(self, request: api.TxnRequest, timeout_s: float = CALL_S) -> api.TxnResponse:
        while self._late and self._rng.random() < 0.2:
            super().txn(self._late.pop(self._rng.randrange(len(self._late))))
            self.late += 1
        chance = self._rng.random()
        if chance < 0.2:
            self._late.append(request)
        if 0.2 <= chance < 0.3:
            super().txn(request)
        if chance < 0.4:
            self.failed += 1
            raise EtcdError("flaky: no answer")
        return super().txn(request, timeout_s)
