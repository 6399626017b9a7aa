"""What every surface has in common: makers and judges by name, and the words for verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from attacks.table import Input
from kv.interface import StorageError
from verifier.errors import E2eksError, HistoryConflict, NotRatified, Refused, VerificationError


class Ruling(NamedTuple):
    """A verdict, and the text of the refusal; empty if there was none."""

    verdict: str
    text: str = ""


class Surface:
    """Makers are methods `make_NAME(**parameters)`, judges are methods `judge_TARGET(made)`.

    A judge returns its verdict or raises what the shipped code raises. Any other exception is a finding.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` is empty, and the surface's own."""
        self.folder = folder

    @classmethod
    def parts(cls) -> set[str]:
        """Names of the makers and judges that the surface adds."""
        return {name for name in vars(cls) if name.startswith(("make_", "judge_"))}

    def make(self, asked: Input) -> Any:
        """The input that a row describes."""
        return getattr(self, f"make_{asked.make}")(**asked.parameters)

    def rule(self, target: str, made: Any) -> Ruling:
        """What the code under attack says to an input."""
        try:
            return Ruling(str(self.ask(target, made)))
        except (E2eksError, StorageError) as error:
            return Ruling(word_for(error), str(error))

    def ask(self, target: str, made: Any) -> object:
        return getattr(self, f"judge_{target}")(made)

    def make_bytes(self, text: str) -> bytes:
        return bytes.fromhex(text)


def word_for(error: E2eksError | StorageError) -> str:
    """The verdict that an error stands for: its stable reason, or its kind and what it names."""
    match error:
        case Refused():
            return error.reason.value
        case VerificationError():
            return f"unproven: {error.check}"
        case NotRatified():
            return f"unratified: {error.cause}"
        case HistoryConflict():
            return "conflict"
        case _:
            return type(error).__name__


def flipped(data: bytes, at: int = 0) -> bytes:
    """`data` with one bit of the byte at `at` turned."""
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)
