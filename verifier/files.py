"""Small files that people keep: read with limits, written whole or not at all, secrets private.

Every failure is a ConfigError that names the file and says what to do, and never shows a file's contents.
Nothing here knows what the files mean.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from verifier.errors import ConfigError
from verifier.limits import KEY_BYTES

SECRET_MODE = 0o600
PUBLIC_MODE = 0o644
FOLDER_MODE = 0o700
SECRET_TEXT_BYTES = 256  # 64 digits, and room for white space


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


def find_file(path: Path, limit: int, what: str) -> bytes | None:
    """Like `read_file`, or None if there is no such file. Raises ConfigError."""
    return read_file(path, limit, what) if _is_there(path) else None


def check_private(path: Path, what: str = "secret") -> None:
    """That a secret's file is there, a plain file, and closed to others. Raises ConfigError."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"the {what} {path} cannot be read: {error.strerror}. {remedy(error)}") from None
    if not stat.S_ISREG(mode):  # a pipe would keep the reader waiting for ever
        raise ConfigError(f"the {what} {path} is not a plain file. Move it away")
    if mode & 0o077:
        have = stat.S_IMODE(mode)
        raise ConfigError(f"the {what} {path} has mode {have:04o}: others may read it. Run: chmod 600 {path}")


def read_private(path: Path, limit: int, what: str) -> bytes:
    """At most `limit` bytes of a plain file that only its owner may read. Raises ConfigError."""
    check_private(path, what)
    return read_file(path, limit, what)


def find_private(path: Path, limit: int, what: str) -> bytes | None:
    """Like `read_private`, or None if there is no such file. Raises ConfigError."""
    return read_private(path, limit, what) if _is_there(path) else None


def read_secret(path: Path, what: str = "secret") -> bytes:
    """The 32 bytes that a private file holds in hexadecimal. Raises ConfigError."""
    text = read_private(path, SECRET_TEXT_BYTES, what)
    try:
        secret = bytes.fromhex(text.decode("ascii").strip())
    except ValueError:
        secret = b""
    if len(secret) != KEY_BYTES:
        raise ConfigError(
            f"the {what} {path} does not hold {KEY_BYTES} bytes in hexadecimal. Put the right file there"
        )
    return secret


def write_new(path: Path, data: bytes, mode: int = PUBLIC_MODE) -> None:
    """A synced file that was not there before, with its mode from the first byte on. Raises ConfigError."""
    try:
        _fill_new(path, data, mode)
        sync_folder(path.parent)
    except FileExistsError:
        raise ConfigError(f"{path} exists already and is not overwritten") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


def replace_file(path: Path, data: bytes, mode: int = PUBLIC_MODE) -> None:
    """The whole new contents in place of the old, or the old ones untouched, synced. Raises ConfigError.

    For a file that one process at a time writes.
    """
    draft = path.with_name(path.name + ".new")
    try:
        draft.unlink(missing_ok=True)  # left by a crash
        _fill_new(draft, data, mode)
        draft.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


def replace_unsynced(path: Path, data: bytes) -> None:
    """The whole new contents in place of the old: for what a crash may take. Raises ConfigError."""
    draft = path.with_name(path.name + ".new")
    try:
        draft.write_bytes(data)
        draft.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


def store_private(path: Path, data: bytes) -> None:
    """Like `replace_file`, for its owner only, in a folder that is made if missing. Raises ConfigError.

    Any number of processes may store at once: each writes a draft of its own, and the last one stands.
    """
    make_folder(path.parent)
    draft = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}")
    try:
        _fill_new(draft, data, SECRET_MODE)
        draft.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


def set_aside(paths: Iterable[Path], now: datetime) -> tuple[Path, ...]:
    """Rename those of the files that are there, each durably before the next; what they are called now.
    Raises ConfigError.
    """
    retired = []
    for path in paths:
        if not path.exists():
            continue
        target = path.with_name(f"{path.name}.retired-{now:%Y%m%dT%H%M%SZ}")
        if target.exists():
            raise ConfigError(f"{target} exists already: wait a second and run this again")
        try:
            path.rename(target)
            sync_folder(path.parent)
        except OSError as error:
            raise ConfigError(f"{path} cannot be renamed to {target}: {error.strerror}") from None
        retired.append(target)
    return tuple(retired)


def make_folder(path: Path) -> Path:
    """`path`, made with its parents if missing, for its owner only. Raises ConfigError."""
    try:
        path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the folder {path} cannot be made: {error.strerror}") from None
    return path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps other processes that lock `path` out; the lock is a file beside it. Raises ConfigError."""
    make_folder(path.parent)
    lock = path.with_name(f"{path.name}.lock")
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, SECRET_MODE)
    except OSError as error:
        raise ConfigError(f"{lock} cannot be opened: {error.strerror}. {remedy(error)}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError:
        pass  # not the same as missing: whoever reads it says what is wrong
    return True


def _fill_new(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)  # whatever the umask was
        file.write(data)
        file.flush()
        os.fsync(descriptor)
