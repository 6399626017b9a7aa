"""The user's own signing keys, one file per user id, and the updates that are on their way.

A key is stored BEFORE anything signed with it is sent, and none is ever deleted here: who loses them loses
the entry. A pending update is stored before it is sent; the same bytes are sent until their fate is known.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

from verifier import encoding, files
from verifier.client.drafts import Draft
from verifier.crypto.signatures import SEED_BYTES, SigningKey
from verifier.errors import ConfigError, E2eksError

SCHEMA = "e2eks.identity/1"
FILE_BYTES = 4 * 1024 * 1024
NAME_BYTES = 200  # of a file name made from a user id; the file system ends at 255


@dataclass(frozen=True, slots=True)
class Identity:
    """`seeds` are Ed25519 seeds, oldest first; `pending` drafts by realm hash in hex."""

    user_id: str
    seeds: tuple[bytes, ...] = field(repr=False)
    pending: Mapping[str, Draft] = field(default_factory=dict, repr=False)

    @property
    def signers(self) -> tuple[SigningKey, ...]:
        return tuple(SigningKey(seed) for seed in self.seeds)

    @property
    def newest(self) -> SigningKey:
        return SigningKey(self.seeds[-1])

    def with_key(self, seed: bytes) -> Identity:
        """With one more key, the newest."""
        return replace(self, seeds=(*self.seeds, seed))

    def with_pending(self, realm_hash: bytes, draft: Draft | None) -> Identity:
        """With `draft` on its way in a realm, or nothing."""
        others = {name: kept for name, kept in self.pending.items() if name != realm_hash.hex()}
        return replace(self, pending=others | ({realm_hash.hex(): draft} if draft else {}))


class Identities:
    """The folder of identities."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, user_id: str) -> Path:
        """Where the identity of `user_id` is, or would be."""
        return self._folder / f"{file_name(user_id)}.json"

    def all(self) -> list[Identity]:
        """Every identity, by user id. Raises ConfigError."""
        found = [self._load(path) for path in self._folder.glob("*.json")]
        return sorted((i for i in found if i is not None), key=lambda identity: identity.user_id)

    def find(self, user_id: str) -> Identity | None:
        """The identity of `user_id`, if there is one. Raises ConfigError."""
        identity = self._load(self.path(user_id))
        if identity is not None and identity.user_id != user_id:
            raise ConfigError(f"{self.path(user_id)} is the identity of somebody else; move it away")
        return identity

    def load(self, user_id: str) -> Identity:
        """The identity of `user_id`. Raises ConfigError if there is none."""
        identity = self.find(user_id)
        if identity is None:
            what = f"there are no signing keys for this user id in {self._folder}"
            raise ConfigError(f"{what}; bring them from where it was registered: {self.path(user_id)}")
        return identity

    def make(self, user_id: str, randomness: Callable[[int], bytes]) -> Identity:
        """A new identity with one key, stored. Raises ConfigError if there is one already."""
        if self.find(user_id) is not None:
            raise ConfigError(f"there is an identity already: {self.path(user_id)}")
        identity = Identity(user_id, (randomness(SEED_BYTES),))
        self.store(identity)
        return identity

    def store(self, identity: Identity) -> None:
        """Write an identity, whole and synced. Raises ConfigError."""
        with files.locked(self.path(identity.user_id)):
            files.store_private(self.path(identity.user_id), _encode(identity))

    def backup(self, user_id: str) -> bytes:
        """The bytes of the identity's file: secrets. Put back at its path, it is restored."""
        self.load(user_id)
        return files.read_private(self.path(user_id), FILE_BYTES, "identity")

    def _load(self, path: Path) -> Identity | None:
        data = files.find_private(path, FILE_BYTES, "identity")
        if data is None:
            return None
        try:
            return _decode(data)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, E2eksError):
            raise ConfigError(f"{path} is no identity file; restore it from a backup") from None


def file_name(user_id: str) -> str:
    """A file name for a user id: readable where it can be."""
    name = quote(user_id, safe="@+.")
    return name if len(name) <= NAME_BYTES else sha256(user_id.encode()).hexdigest()


def _encode(identity: Identity) -> bytes:
    document = {
        "schema": SCHEMA,
        "user": identity.user_id,
        "keys": [
            {"seed": _base64(key_seed), "public_key": SigningKey(key_seed).public_key.hex()}
            for key_seed in identity.seeds
        ],
        "pending": {
            realm: {
                "update": _base64(draft.update.encoded),
                "profile": _base64(draft.profile),
                "nonce": _base64(draft.nonce),
                "request_id": _base64(draft.request_id),
            }
            for realm, draft in identity.pending.items()
        },
    }
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def _decode(data: bytes) -> Identity:
    document = json.loads(data)
    if document["schema"] != SCHEMA or not document["keys"]:
        raise ValueError("another schema, or no keys")
    user_id = str(document["user"])
    seeds = tuple(_bytes(key["seed"]) for key in document["keys"])
    if any(len(seed) != SEED_BYTES for seed in seeds):
        raise ValueError("a seed of another length")
    pending = {
        str(realm): Draft(
            user_id=user_id,
            update=encoding.decode_update(_bytes(draft["update"])),
            profile=_bytes(draft["profile"]),
            nonce=_bytes(draft["nonce"]),
            request_id=_bytes(draft["request_id"]),
        )
        for realm, draft in document["pending"].items()
    }
    return Identity(user_id, seeds, pending)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError("not base64") from None
