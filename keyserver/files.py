"""Small files an operator keeps: read with limits, replaced whole and synced, secrets private.

Every failure is a ConfigError that names the file and says what to do, and never shows a file's contents.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from verifier.errors import E2eksError
from verifier.limits import KEY_BYTES

SECRET_MODE = 0o600
PUBLIC_MODE = 0o644
SECRET_TEXT_BYTES = 256  # 64 digits, and room for white space


class ConfigError(E2eksError):
    """A configuration, a file it names or a folder is not usable; the text says what to do."""


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


def check_private(path: Path) -> None:
    """That a secret's file is there, a plain file, and closed to others. Raises ConfigError."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"the secret {path} cannot be read: {error.strerror}. {remedy(error)}") from None
    if not stat.S_ISREG(mode):
        raise ConfigError(f"the secret {path} is not a plain file")
    if mode & 0o077:
        have = stat.S_IMODE(mode)
        raise ConfigError(f"the secret {path} has mode {have:04o}: others may read it. Run: chmod 600 {path}")


def read_secret(path: Path) -> bytes:
    """The 32 bytes that a private file holds in hexadecimal. Raises ConfigError."""
    check_private(path)
    text = read_file(path, SECRET_TEXT_BYTES, "secret")
    try:
        secret = bytes.fromhex(text.decode("ascii").strip())
    except ValueError:
        secret = b""
    if len(secret) != KEY_BYTES:
        raise ConfigError(
            f"the secret {path} does not hold {KEY_BYTES} bytes in hexadecimal. Put the right file there"
        )
    return secret


def write_new(path: Path, data: bytes, mode: int = PUBLIC_MODE) -> None:
    """A file that was not there before, with its mode from the first byte on, synced. Raises ConfigError."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "wb") as file:
            _fill(file.fileno(), data, mode)
    except FileExistsError:
        raise ConfigError(f"{path} exists already and is not overwritten") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


def replace_file(path: Path, data: bytes, mode: int = PUBLIC_MODE) -> None:
    """The whole new contents in place of the old, or the old ones untouched, synced. Raises ConfigError."""
    draft = path.with_name(path.name + ".new")
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "wb") as file:
            _fill(file.fileno(), data, mode)
        os.replace(draft, path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


def _fill(fd: int, data: bytes, mode: int) -> None:
    os.fchmod(fd, mode)  # whatever the umask was
    while data:
        data = data[os.write(fd, data) :]
    os.fsync(fd)
