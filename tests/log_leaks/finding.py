"""What no log should hold: addresses of users; secrets in hexadecimal, base64 or as Python shows bytes."""

from __future__ import annotations

import ast
import base64
import binascii
import re
from collections.abc import Collection, Iterator

SECRET_BYTES = 32
USER_ID = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+")
HEXADECIMAL = re.compile(r"[0-9A-Fa-f]{64,}")
BASE64 = re.compile(r"[A-Za-z0-9+/_-]{43,}")
BYTES = re.compile(r"""b'(?:[^'\\]|\\.)*'|b"(?:[^"\\]|\\.)*\"""")
PRIVATE_PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")


def leaks(text: str, secrets: Collection[bytes]) -> list[str]:
    """One word for each kind of leak in a line or a whole log; never what leaked."""
    found = []
    if USER_ID.search(text):
        found.append("a user id")
    if PRIVATE_PEM.search(text):
        found.append("a private key")
    if any(window in secrets for data in _binary(text) for window in _windows(data)):
        found.append("a nonce or seed")
    return found


def _binary(text: str) -> Iterator[bytes]:
    """Everything in the text that may stand for bytes."""
    for run in HEXADECIMAL.findall(text):
        for shift in (0, 1):
            digits = run[shift:]
            yield bytes.fromhex(digits[: len(digits) // 2 * 2])
    for run in BASE64.findall(text):
        for shift in range(4):
            digits = run[shift:].replace("-", "+").replace("_", "/")
            with_padding = digits[: len(digits) - 1 if len(digits) % 4 == 1 else len(digits)]
            yield base64.b64decode(with_padding + "=" * (-len(with_padding) % 4))
    for literal in BYTES.findall(text):
        try:
            yield ast.literal_eval(literal)
        except (SyntaxError, ValueError, binascii.Error):
            continue


def _windows(data: bytes) -> Iterator[bytes]:
    for start in range(len(data) - SECRET_BYTES + 1):
        yield data[start : start + SECRET_BYTES]
