"""Realms the user has chosen to trust, by name: a realm.json each, and perhaps the user's own quorum.

What a realm's file says is trusted from here on, so its fingerprint is compared BEFORE it is stored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from e2eks.v1 import types_pb2 as pb
from google.protobuf import json_format

from verifier import encoding, files, limits, policy
from verifier import realm as realms
from verifier.errors import ConfigError, Malformed
from verifier.types import QuorumExpr, Realm

NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}", re.ASCII)
REALM_FILE, QUORUM_FILE, CURRENT_FILE = "realm.json", "quorum.json", ".current"


@dataclass(frozen=True, slots=True)
class Context:
    """A realm and the quorum to hold it to; None = the realm's own."""

    name: str
    realm: Realm
    quorum: QuorumExpr | None


def read_realm(path: Path) -> Realm:
    """The realm in a realm.json. Raises ConfigError."""
    data = files.find_file(path, limits.REALM_JSON_BYTES, "realm file")
    if data is None:
        raise ConfigError(f"there is no realm file {path}; get it from the operator of the realm")
    return parse_realm(data, str(path))


def parse_realm(data: bytes, source: str) -> Realm:
    """The realm in the bytes of a realm.json from `source`. Raises ConfigError."""
    try:
        return realms.parse_realm_json(data)
    except Malformed as error:
        raise ConfigError(
            f"{source} is no realm file: {error.what}; get it from the realm's operator"
        ) from None


def read_quorum(path: Path) -> QuorumExpr:
    """A user's own quorum: proto3 JSON of QuorumExpr, key ids in base64. Raises ConfigError."""
    data = files.read_file(path, limits.HEAD_BYTES, "quorum")
    try:
        message = json_format.Parse(data, pb.QuorumExpr(), max_recursion_depth=16)
        return encoding.quorum_from(message)
    except (json_format.ParseError, UnicodeDecodeError, RecursionError):
        raise ConfigError(f"{path} is not the JSON form of QuorumExpr") from None
    except Malformed as error:
        raise ConfigError(f"{path} is no quorum: {error.what}") from None


def _own_quorum(folder: Path) -> QuorumExpr | None:
    path = folder / QUORUM_FILE
    return read_quorum(path) if path.exists() else None


class Contexts:
    """The folder of contexts, and which of them is current."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        """All contexts, sorted."""
        return sorted(path.parent.name for path in self._folder.glob(f"*/{REALM_FILE}"))

    def current(self) -> str | None:
        """The context in use: the one chosen, or the only one."""
        chosen = files.find_file(self._folder / CURRENT_FILE, 1024, "choice of context")
        if chosen is not None:
            return chosen.decode(errors="replace").strip()
        names = self.names()
        return names[0] if len(names) == 1 else None

    def use(self, name: str) -> None:
        """Make `name` current. Raises ConfigError if there is none."""
        self.load(name)
        files.store_private(self._folder / CURRENT_FILE, name.encode() + b"\n")

    def load(self, name: str) -> Context:
        """Raises ConfigError if there is no such context or its files are damaged."""
        folder = self._folder_of(name)
        if not (folder / REALM_FILE).exists():
            known = ", ".join(self.names()) or "none yet"
            raise ConfigError(
                f"there is no context {name!r} (known: {known}); add it: e2eks context add REALM_FILE"
            )
        return Context(name, read_realm(folder / REALM_FILE), _own_quorum(folder))

    def load_current(self, name: str | None) -> Context:
        """The named context, or the current one. Raises ConfigError."""
        chosen = name or self.current()
        if chosen is None:
            what = (
                "choose one: e2eks context use NAME"
                if self.names()
                else "add it: e2eks context add REALM_FILE"
            )
            raise ConfigError(f"no realm is chosen; {what}")
        return self.load(chosen)

    def add(self, context: Context, *, fingerprint: str | None, allow_split_view: bool) -> Context:
        """Store a context; what is stored. `fingerprint` is what the user was told to compare, if anything.
        A user's own quorum outlives a new realm file.

        Raises ConfigError if the fingerprint differs, if the name means another realm already, or if two
        quorums of the realm need not share a verifier.
        """
        actual = realms.fingerprint(context.realm)
        if fingerprint is not None and fingerprint.strip() != actual:
            what = f"the realm's fingerprint is {actual}, not {fingerprint.strip()}"
            raise ConfigError(f"{what}; do not use it, ask its operator which one is right")
        folder = self._folder_of(context.name)
        own = context.quorum or _own_quorum(folder)
        quorum = own or context.realm.verification_policy.quorum
        if not allow_split_view and policy.can_split(quorum, context.realm.genesis_policy.keys.keys()):
            what = (
                "two sets of signers without a common verifier satisfy this quorum, so two users can be shown"
            )
            raise ConfigError(
                f"{what} different keys; choose another quorum, or accept it with --allow-split-view"
            )
        if (folder / REALM_FILE).exists():
            self._check_same(context, actual, fingerprint)
        files.store_private(folder / REALM_FILE, realms.realm_json(context.realm))
        if context.quorum is not None:
            json = json_format.MessageToJson(
                encoding.quorum_message(context.quorum), preserving_proto_field_name=True
            )
            files.store_private(folder / QUORUM_FILE, json.encode() + b"\n")
        return replace(context, quorum=own)

    def _check_same(self, context: Context, actual: str, fingerprint: str | None) -> None:
        known = realms.fingerprint(self.load(context.name).realm)
        if known != actual and fingerprint is None:
            what = f"context {context.name!r} has the fingerprint {known}, the new file {actual}"
            raise ConfigError(f"{what}; ask the operator, then run it again with --fingerprint {actual}")

    def _folder_of(self, name: str) -> Path:
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r} is no name for a context: use lower-case letters, digits and . _ @ -"
            )
        return self._folder / name
