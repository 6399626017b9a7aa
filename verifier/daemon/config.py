"""A verifier's configuration: TOML in, one frozen value out; unknown keys refused, secrets by path only.

Paths are relative to the file. Reading a configuration changes nothing and reads no secret.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from verifier import limits
from verifier.config_file import decode, read_realm, split_address
from verifier.errors import ConfigError
from verifier.files import read_file
from verifier.types import Realm

CONFIG_BYTES = 64 * 1024
DEFAULT_PORT = 4630
VERIFICATION_PORT = 4626
PUSH_PORT = 4628


class _Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    certificate: str = "tls.pem"
    key: str = "tls.key"


class _Keyserver(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    verification: list[str]
    push: list[str]


class Times(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long to wait, in milliseconds.

    A connection is tried again after retry_min_ms, doubling up to retry_max_ms. A stream that follows is
    renewed, at the next address, after stream_renew_ms, and after silence_max_ms without a message if there
    is another address: a replica that hangs, or is cut off from the others, cannot hold a verifier for
    longer.
    """

    retry_min_ms: int = 250
    retry_max_ms: int = 5_000
    push_timeout_ms: int = 5_000
    stream_renew_ms: int = 600_000
    silence_max_ms: int = 10_000
    compare_interval_ms: int = 30_000


# Two full write buffers of the database: what opening it may have to write.
BALLAST_BYTES = 32 * 1024 * 1024
# Well above the ballast: a message that is being replayed must still fit, and so must a compaction.
MIN_FREE_BYTES = 128 * 1024 * 1024


class Storage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Below which free space nothing is followed, and how much is kept in reserve to start at all."""

    min_free_bytes: int = MIN_FREE_BYTES
    ballast_bytes: int = BALLAST_BYTES


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: int
    name: str
    keyserver: _Keyserver
    realm: str = "realm.json"
    key: str = "verifier.key"
    sign_once_register: str = "sign-once.register"
    data: str = "data"
    evidence: str = "evidence"
    status: str = "status.json"
    listen: str = ""
    metrics: str = ""
    stop_grace_ms: int = 5_000
    tls: _Tls = _Tls()
    times: Times = Times()
    storage: Storage = Storage()


@dataclass(frozen=True, slots=True)
class Config:
    """Everything a verifier is started with. `listen` "" = RatifiedHeads is not served, `metrics` likewise.

    After SIGTERM, ratifications that are owed are delivered once more within `stop_grace_ms`.
    """

    path: Path
    name: str
    realm: Realm
    realm_file: Path
    key: Path
    sign_once_register: Path
    data: Path
    evidence: Path
    status: Path
    listen: str
    metrics: str
    stop_grace_ms: int
    verification: tuple[str, ...]
    push: tuple[str, ...]
    tls_certificate: Path
    tls_key: Path
    times: Times
    storage: Storage


def load_config(path: Path) -> Config:
    """The configuration in a TOML file, with its realm. Raises ConfigError."""
    place = path.absolute()
    file = decode(place, read_file(place, CONFIG_BYTES, "configuration"), _File)
    folder = place.parent
    for address in (
        *file.keyserver.verification,
        *file.keyserver.push,
        *filter(None, (file.listen, file.metrics)),
    ):
        split_address(address, str(place))
    if not file.keyserver.verification or not file.keyserver.push:
        raise ConfigError(f"{place}: keyserver.verification and keyserver.push each need an address")
    if not 0 < file.times.retry_min_ms <= file.times.retry_max_ms:
        raise ConfigError(f"{place}: times.retry_min_ms is at least 1 and at most retry_max_ms")
    if min(getattr(file.times, name) for name in Times.__struct_fields__) < 1:
        raise ConfigError(f"{place}: every time is at least 1 ms")
    if not 0 <= file.stop_grace_ms <= limits.DAY_MS:
        raise ConfigError(f"{place}: stop_grace_ms is at least 0 and at most a day")
    if not 0 <= file.storage.ballast_bytes < file.storage.min_free_bytes:
        what = "storage.ballast_bytes is at least 0, which is none, and less than min_free_bytes"
        raise ConfigError(f"{place}: {what}, or giving up the ballast would fill the disk")
    return Config(
        path=place,
        name=file.name,
        realm=read_realm(folder / file.realm)[0],
        realm_file=folder / file.realm,
        key=folder / file.key,
        sign_once_register=folder / file.sign_once_register,
        data=folder / file.data,
        evidence=folder / file.evidence,
        status=folder / file.status,
        listen=file.listen,
        metrics=file.metrics,
        stop_grace_ms=file.stop_grace_ms,
        verification=tuple(file.keyserver.verification),
        push=tuple(file.keyserver.push),
        tls_certificate=folder / file.tls.certificate,
        tls_key=folder / file.tls.key,
        times=file.times,
        storage=file.storage,
    )
