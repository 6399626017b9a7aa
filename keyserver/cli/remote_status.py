"""How a running replica is, asked from outside over its HTTP listener."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

from keyserver.config import load_config
from keyserver.exits import Unreachable
from verifier.config_file import split_address
from verifier.errors import ConfigError

SCHEMA = "e2eks.status/1"
STATUS_BYTES = 1024 * 1024
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - hosts that are listened on, not asked


def fetch_status(config_file: Path, url: str, timeout_s: float) -> dict[str, Any]:
    """The status document of the replica at `url`, or of the configured one if `url` is empty.

    Raises ConfigError, Unreachable.
    """
    place = f"{url or _listener(config_file)}/status"
    if not place.startswith(("http://", "https://")):
        raise ConfigError(f"{url!r} is not an http address. Write http://HOST:PORT")
    # No proxy: a replica is asked from its own machine or network, and its status is nobody else's business.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(place, timeout=timeout_s) as answer:
            data = answer.read(STATUS_BYTES)
    except urllib.error.HTTPError as error:
        with error:
            data = error.read(STATUS_BYTES)  # a replica that is not ready says why
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise Unreachable(f"no replica answers at {place}: {reason}. Is it running?") from None
    return _parse(data, place)


def _parse(data: bytes, place: str) -> dict[str, Any]:
    try:
        record = json.loads(data)
    except ValueError:
        record = None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise Unreachable(f"what answers at {place} is not a keyserver of this version")
    return record


def _listener(config_file: Path) -> str:
    config = load_config(config_file)
    if not config.listen.http:
        raise ConfigError(f"{config_file}: listen.http is off, so the replica cannot be asked. Give --url")
    host, port = split_address(config.listen.http, f"{config_file}: listen.http")
    if not port:
        raise ConfigError(f"{config_file}: listen.http takes any free port. Give --url with the one it took")
    host = _ANYWHERE.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
