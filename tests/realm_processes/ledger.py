"""What was promised: acknowledged updates, on the disk before they count, and every signature ever seen."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock

from verifier import epoch as epoch_law
from verifier.crypto import signatures
from verifier.signonce import Row
from verifier.types import SignedHead


@dataclass(frozen=True)
class Acknowledged:
    """An update that a client was shown proven. `entry` and `profile` are hex."""

    user_id: str
    version: int
    epoch: int
    entry: str
    profile: str


class Ledger:
    """Acknowledged updates in a file; each is synced before anybody is told. Any thread may write."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        path.touch()

    def write(self, promise: Acknowledged) -> None:
        with self._lock, self._path.open("ab") as file:
            file.write(json.dumps(asdict(promise)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> Iterator[Acknowledged]:
        for line in self._path.read_bytes().splitlines():
            yield Acknowledged(**json.loads(line))


class SeenSignatures:
    """Which key signed what in which epoch, from wherever it was seen. Any thread may call it."""

    def __init__(self, replicas: Mapping[bytes, bytes], verifiers: Mapping[bytes, bytes]) -> None:
        self._replicas = dict(replicas)
        self._verifiers = dict(verifiers)
        self._heads: dict[int, set[bytes]] = defaultdict(set)
        self._made: dict[tuple[int, bytes], set[tuple[bytes, int, bytes]]] = defaultdict(set)
        self._lock = Lock()
        self.invalid: list[str] = []

    def know_replica(self, key_id: bytes, public_key: bytes) -> None:
        """A key that replicas sign with from some epoch on. BEFORE it signs."""
        self._replicas[key_id] = public_key

    def know_verifier(self, key_id: bytes, public_key: bytes) -> None:
        """The same of a verifier."""
        self._verifiers[key_id] = public_key

    @property
    def newest(self) -> int:
        """The newest epoch that anybody was seen to sign."""
        with self._lock:
            return max(self._heads, default=0)

    def see(self, head: SignedHead, where: str) -> None:
        """A head and its signatures, each of which must be valid."""
        for ratification in head.ratifications:
            for made in ratification.signatures:
                seen = (head.head.hash, ratification.timestamp_ms, made.signature)
                if self._is_new(head.head.epoch, made.key_id, seen):
                    self._check(head, made.key_id, ratification.timestamp_ms, made.signature, where)

    def see_row(self, key_id: bytes, row: Row) -> None:
        """A row of a sign-once register."""
        self._is_new(row.epoch, key_id, (row.head_hash, row.timestamp_ms, row.signature))

    def _is_new(self, number: int, key_id: bytes, seen: tuple[bytes, int, bytes]) -> bool:
        with self._lock:
            self._heads[number].add(seen[0])
            known = self._made[number, key_id]
            new = seen not in known
            known.add(seen)
            return new

    def _check(self, head: SignedHead, key_id: bytes, time_ms: int, signature: bytes, where: str) -> None:
        if key_id in self._replicas:
            key, message = self._replicas[key_id], epoch_law.replica_message(head.head.encoded, time_ms)
        else:
            key, message = self._verifiers[key_id], epoch_law.verifier_message(head.head.encoded, time_ms)
        if not signatures.verify(key, message, signature):
            self.invalid.append(f"{where}: an invalid signature on head {head.head.epoch}")

    def contradictions(self) -> list[str]:
        """Epochs with two heads, and keys that signed an epoch twice."""
        found = [
            f"epoch {number} has {len(heads)} heads"
            for number, heads in self._heads.items()
            if len(heads) > 1
        ]
        for (number, key_id), made in self._made.items():
            if len(made) > 1:
                found.append(f"key {key_id.hex()[:8]} signed epoch {number} {len(made)} times")
        return found + self.invalid

    def signed_by(self, key_id: bytes) -> set[int]:
        """The epochs that a key was seen to sign."""
        with self._lock:
            return {number for (number, key), made in self._made.items() if key == key_id and made}
