"""What the health listener answers in the last moments of a replica whose storage failed."""

import json
from collections.abc import Iterator, MutableMapping
from typing import Any, cast

import pytest
import trio

from keyserver.frontends.health import application
from keyserver.metrics import Metrics
from keyserver.status import SCHEMA, Status
from kv.interface import StorageError

FAILURE = "the store in data failed: No space left on device"


class _Failed:
    """A Status upon a store that refuses everything."""

    def not_ready(self) -> str:
        raise StorageError(FAILURE)

    def gauges(self) -> Iterator[Any]:
        raise StorageError(FAILURE)

    def record(self) -> dict[str, Any]:
        raise StorageError(FAILURE)


async def get(path: str) -> tuple[int, bytes]:
    app = application(cast(Status, _Failed()), Metrics())
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []}
    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


@pytest.mark.parametrize("path", ["/readyz", "/status", "/metrics"])
def test_a_failed_storage_is_named_and_not_an_internal_error(path: str) -> None:
    code, body = trio.run(get, path)
    assert code == 503
    assert json.loads(body) == {"schema": SCHEMA, "ready": False, "reason": FAILURE}
