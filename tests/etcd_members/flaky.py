"""A client whose calls fail in every way that a network has, and some that come back from the dead."""

from __future__ import annotations

import random
import threading
from typing import Any

from e2eks.etcd import api_pb2 as api

from replication.etcd.client import CALL_S, EtcdClient, EtcdError


class FlakyClient(EtcdClient):
    """Of ten transactions about four fail: carried out, not carried out, or carried out later."""

    def __init__(self, *arguments: Any, rng: random.Random) -> None:
        super().__init__(*arguments)
        self._rng = rng
        self._late: list[api.TxnRequest] = []
        self._drawing = threading.Lock()  # of the sender, the keeper and the follower
        self.failed = self.late = 0

    def txn(self, request: api.TxnRequest, timeout_s: float = CALL_S) -> api.TxnResponse:
        while (late := self._one_that_was_late()) is not None:
            super().txn(late)
        with self._drawing:
            chance = self._rng.random()
            if chance < 0.2:
                self._late.append(request)
            self.failed += chance < 0.4
        if 0.2 <= chance < 0.3:
            super().txn(request)
        if chance < 0.4:
            raise EtcdError("flaky: no answer")
        return super().txn(request, timeout_s)

    def _one_that_was_late(self) -> api.TxnRequest | None:
        with self._drawing:
            if not self._late or self._rng.random() >= 0.2:
                return None
            self.late += 1
            return self._late.pop(self._rng.randrange(len(self._late)))
