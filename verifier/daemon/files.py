"""A verifier's files: read with limits, written whole and synced, secrets private. Failures are
ConfigErrors."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from verifier.crypto.signatures import SEED_BYTES
from verifier.daemon import evidence as evidences
from verifier.daemon.evidence import Document, Evidence
from verifier.daemon.failures import ConfigError, Halted
from verifier.errors import Malformed
from verifier.types import Realm

SECRET_MODE = 0o600
PUBLIC_MODE = 0o644


def remedy(error: OSError) -> str:
    """What to do about a file that cannot be read."""
    if isinstance(error, PermissionError):
        return "Let the user of this process read it"
    return "Put it there, or correct the path"


def read_file(path: Path, limit: int, what: str) -> bytes:
    """At most `limit` bytes of a file. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"the {what} {path} cannot be read: {error.strerror}. {remedy(error)}") from None
    if len(data) > limit:
        raise ConfigError(f"the {what} {path} is larger than {limit} bytes")
    return data


def read_private(path: Path, limit: int, what: str) -> bytes:
    """The contents of a plain file that only its owner may read. Raises ConfigError."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"the {what} {path} cannot be read: {error.strerror}. {remedy(error)}") from None
    if not stat.S_ISREG(mode) or mode & 0o077:
        raise ConfigError(
            f"the {what} {path} has mode {stat.S_IMODE(mode):04o}: others may read it. Run: chmod 600 {path}"
        )
    return read_file(path, limit, what)


def read_seed(path: Path) -> bytes:
    """The 32 secret bytes that a private file holds in hexadecimal. Raises ConfigError."""
    text = read_private(path, 256, "key")
    try:
        seed = bytes.fromhex(text.decode("ascii").strip())
    except ValueError:
        seed = b""
    if len(seed) != SEED_BYTES:
        raise ConfigError(
            f"the key {path} does not hold {SEED_BYTES} bytes in hexadecimal. Put the right file there"
        )
    return seed


def write_new(path: Path, data: bytes, mode: int = PUBLIC_MODE) -> None:
    """A synced file that was not there before, with its mode from the first byte on. Raises ConfigError."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
    except FileExistsError:
        raise ConfigError(f"{path} exists already and is not overwritten") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


def replace_file(path: Path, data: bytes) -> None:
    """Whole new contents in place of the old, not synced: for what may be lost. Raises ConfigError."""
    draft = path.with_name(path.name + ".new")
    try:
        draft.write_bytes(data)
        draft.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def keep_evidence(folder: Path, realm: Realm, evidence: Evidence, now_ms: int) -> Path:
    """The file that holds the evidence, on the disk when this returns. Raises ConfigError.

    The name follows from the content, so finding the same thing twice leaves one file.
    """
    path = folder / f"{evidence.kind}-{evidences.fingerprint(evidence)}.json"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_folder(folder.parent)
        if not path.exists():
            draft = path.with_suffix(".new")
            draft.unlink(missing_ok=True)  # torn: only a whole file ever gets the final name
            write_new(draft, evidences.to_document(realm, evidence, now_ms))
            draft.rename(path)
            sync_folder(folder)
    except OSError as error:
        raise ConfigError(f"the evidence file {path} cannot be written: {error.strerror}") from None
    return path


def read_evidence(path: Path) -> Document:
    """The evidence in a file. Raises ConfigError when it cannot be read or is none."""
    try:
        return evidences.from_document(read_file(path, evidences.DOCUMENT_BYTES, "evidence file"))
    except Malformed as error:
        raise ConfigError(f"{path}: {error.what}") from None


def refuse_while_evidence_is_kept(folder: Path) -> None:
    """Raises Halted if the folder holds evidence: no more ratifications until a person has looked."""
    for path in sorted(folder.glob("*.json")):
        document = read_evidence(path)
        raise Halted(f"stopped before: {document.what}", path, document.exit_code)
