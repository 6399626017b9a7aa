"""What the health listener answers in the last moments of a replica whose storage failed."""

import json
import socket
from collections.abc import Iterator, MutableMapping
from typing import Any, cast

import pytest
import trio

from keyserver.frontends.health import application, serve
from keyserver.machine.codes import Halt
from keyserver.metrics import Metrics
from keyserver.status import SCHEMA, Status
from kv.interface import StorageError
from verifier.errors import ConfigError

FAILURE = "the store in data failed: No space left on device"


class _Failed:
    """A Status upon a store that refuses everything, or holds what contradicts itself."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def not_ready(self) -> str:
        raise self._error

    def gauges(self) -> Iterator[Any]:
        raise self._error

    def record(self) -> dict[str, Any]:
        raise self._error


async def get(path: str, error: Exception) -> tuple[int, bytes]:
    app = application(cast(Status, _Failed(error)), Metrics())
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []}
    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


@pytest.mark.parametrize("path", ["/readyz", "/status", "/metrics"])
@pytest.mark.parametrize("kind", [StorageError, Halt])
def test_a_failed_storage_is_named_and_not_an_internal_error(path: str, kind: type[Exception]) -> None:
    code, body = trio.run(get, path, kind(FAILURE))
    assert code == 503
    assert json.loads(body) == {"schema": SCHEMA, "ready": False, "reason": FAILURE}


@pytest.mark.parametrize(
    ("number", "why"), [(98, "Address already in use"), (-2, "Name or service not known")]
)
async def test_an_address_that_cannot_be_bound_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, number: int, why: str
) -> None:
    """Names that nobody knows have numbers of their own, of which the system's table knows nothing."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, f"{why} (while attempting to bind on address ('host', 1))")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(ConfigError, match=rf"^listen.http: host:1 cannot be bound: {why}\. Is"):
        await serve(application(cast(Status, _Failed(Halt())), Metrics()), "host:1")
