"""Small files that must survive: written whole or not at all, synced, readable by their owner only."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from verifier.client.outcome import SettingsError

OWNER_ONLY = 0o600
FOLDER_OWNER_ONLY = 0o700


def make_folder(path: Path) -> Path:
    """`path`, made with its parents if missing. Raises SettingsError."""
    try:
        path.mkdir(mode=FOLDER_OWNER_ONLY, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"cannot make the folder {path}: {error.strerror}") from None
    return path


def write(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one atomic, synced step. Raises SettingsError."""
    make_folder(path.parent)
    draft = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
        _sync_folder(path.parent)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise SettingsError(f"cannot write {path}: {error.strerror}") from None


def read(path: Path, *, limit: int) -> bytes | None:
    """The bytes of `path`, or None if there is no such file. Raises SettingsError, above `limit` too."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > limit:
        raise SettingsError(f"{path} has more than {limit} bytes; this is not the file it should be")
    return data


def read_secret(path: Path, *, limit: int) -> bytes | None:
    """Like `read`, for a file that nobody but its owner may read. Raises SettingsError with what to do."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from None
    if not stat.S_ISREG(mode):  # a pipe would keep the command waiting for ever
        raise SettingsError(f"{path} should hold secrets and is not a plain file; move it away")
    if mode & 0o077:
        raise SettingsError(f"{path} holds secrets and others may read it; run: chmod 600 {path}")
    return read(path, limit=limit)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps other processes that lock `path` out; the lock is a file beside it."""
    make_folder(path.parent)
    try:
        descriptor = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, OWNER_ONLY)
    except OSError as error:
        raise SettingsError(f"cannot lock {path}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
