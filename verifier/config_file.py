"""What the configuration files of replicas and verifiers have in common: TOML in, a struct out; the realm
file they name; addresses. Unknown keys are refused, and every mistake is named with what to do about it.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TypeVar

import msgspec

from verifier import limits
from verifier.errors import ConfigError, Malformed
from verifier.files import read_file
from verifier.realm import parse_realm_json
from verifier.types import Realm

SCHEMA = 1
T = TypeVar("T", bound=msgspec.Struct)


def decode(place: Path, data: bytes, form: type[T]) -> T:
    """The struct in a TOML file of this version's `schema`. `place` is for words. Raises ConfigError."""
    try:
        tree = tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{place} is not TOML: {error}. Correct the file") from None
    if tree.get("schema") != SCHEMA:
        what = f"{place}: this version reads `schema = {SCHEMA}` only, not {tree.get('schema')!r}"
        raise ConfigError(f"{what}. Use the version that the file is for, or correct it")
    try:
        return msgspec.convert(tree, form)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{place}: {error}. Correct or remove the key") from None


def read_realm(path: Path) -> tuple[Realm, bytes]:
    """The realm in a realm.json, and the file's bytes. Raises ConfigError."""
    data = read_file(path, limits.REALM_JSON_BYTES, "realm file")
    try:
        return parse_realm_json(data), data
    except Malformed as error:
        raise ConfigError(
            f"{path} is not a usable realm file: {error}. Put the realm's published realm.json there"
        ) from None


def split_address(address: str, what: str) -> tuple[str, int]:
    """Host and port of "host:port"; IPv6 hosts stand in brackets, which the result leaves out.

    Raises ConfigError.
    """
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise ConfigError(f"{what}: {address!r} is not host:port, as in 127.0.0.1:4625")
    if ":" in host and not bracketed:
        raise ConfigError(f"{what}: an IPv6 address stands in brackets, as in [::1]:4625")
    return (host[1:-1] if bracketed else host), int(port)
