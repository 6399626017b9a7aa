"""Transcripts of the machine: commands, a line, and everything they wrote and announced.

`E2EKS_REWRITE=1 make test ARGS=tests/golden` writes what is so now; the diff is then read by a person. A
changed digest in an old transcript is a new rules level: logs of released versions must replay to the
digests they had.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from workload.cast import Draft, Key, User, draft, erasure
from workload.replica import Replica

from keyserver.machine import notices, views
from keyserver.machine.commands import AdmitVerifier, AnnounceRules, Command, Delimiter, SubmitUpdate, Tick
from keyserver.machine.step import Outcome
from keyserver.machine.tables import Tables

FOLDER = Path(__file__).parent / "machine"
NUMBER_FIRST = (Tables.REPLICA_SIGNATURES, Tables.RATIFICATIONS)
COUNTED = (Tables.TREE, Tables.HISTORY, Tables.BLANKING)
UNTOLD = (Tables.STATE, Tables.APPLIED)  # told in words


class Transcript:
    """Runs the lines of one file against one replica."""

    def __init__(self) -> None:
        self.replica = Replica(name="golden")
        self.users: dict[str, User] = {}

    def run(self, line: str) -> list[str]:
        word, *given = line.split()
        made = self.words[word](self, *given)
        return [] if made is None else describe(self.replica.commit(made))

    def user(self, name: str) -> User:
        """As the log knows it."""
        user = User.named(name)
        current = views.current_entry(self.replica.store, user.index)
        if current is not None:
            user.accepted(current.update.entry.encoded)
        return user

    # Words

    def replicas(self, count: str) -> None:
        self.replica = Replica(int(count), name="golden")

    def wait(self, milliseconds: str) -> None:
        self.replica.clock_ms += int(milliseconds)

    def register(self, name: str, label: str = "") -> bytes:
        endorsers = self.replica.endorsers
        return self.submit(draft(self.replica.realm, self.user(name), endorsers=endorsers, label=label))

    def unendorsed(self, name: str) -> bytes:
        return self.submit(draft(self.replica.realm, self.user(name)))

    def update(self, name: str, label: str = "") -> bytes:
        return self.submit(draft(self.replica.realm, self.user(name), label=label))

    def unsigned(self, name: str) -> bytes:
        return self.submit(draft(self.replica.realm, self.user(name), signers=[]))

    def erased(self, name: str) -> bytes:
        return self.replica.entry(draft(self.replica.realm, self.user(name)).command)

    def erase(self, name: str) -> bytes:
        return self.replica.entry(erasure(self.replica.realm, self.user(name)))

    def erase_by(self, name: str, other: str) -> bytes:
        signers = self.user(other).keys
        return self.replica.entry(erasure(self.replica.realm, self.user(name), signers=signers))

    def revoke(self, name: str) -> bytes:
        return self.submit(draft(self.replica.realm, self.user(name), revocation=True))

    def again(self, name: str) -> bytes:
        current = views.current_entry(self.replica.store, User.named(name).index)
        assert current is not None
        return self.replica.entry(SubmitUpdate(current.update))

    def submit(self, made: Draft) -> bytes:
        return self.replica.entry(made.command, parts=(made.part,))

    def by(self, number: str, command: Command) -> bytes:
        return self.replica.entry(command, by=self.key(number))

    def key(self, number: str) -> Key:
        """A replica's, in the order in which they came."""
        return list(self.replica.known.values())[int(number)]

    def tick(self, number: str, ahead: str = "0") -> bytes:
        key = self.key(number)
        return self.replica.entry(Tick(), by=key, time_ms=self.replica.clock_ms + int(ahead))

    def delimit(self, epoch: str) -> bytes:
        return self.replica.entry(Delimiter(int(epoch), self.replica.clock_ms))

    def sign(self, number: str, epoch: str) -> bytes:
        key = self.key(number)
        return self.by(number, self.replica.signature(key, int(epoch)))

    def admit(self, number: str, verifier: str) -> bytes:
        return self.by(number, AdmitVerifier(self.replica.verifiers[int(verifier)].public_key))

    def ratify(self, verifier: str, epoch: str) -> bytes:
        head = self.replica.head(int(epoch)).encoded
        return self.replica.entry(self.replica.ratification(self.replica.verifiers[int(verifier)], head))

    def replace(self, number: str, name: str) -> bytes:
        """A change, approved by all, that puts a new key in the place of a replica's."""
        leaving = self.key(number)
        return self.replica.entry(self.replica.change(add=Key("golden", name), remove=leaving))

    def announce(self, number: str, rules: str) -> bytes:
        return self.by(number, AnnounceRules(int(rules)))

    def stranger(self) -> bytes:
        return self.replica.entry(Tick(), by=Key("golden", "stranger"))

    def junk(self, text: str) -> bytes:
        return bytes.fromhex(text)

    words: Mapping[str, Callable[..., bytes | None]] = {
        "replicas": replicas, "wait": wait, "register": register, "unendorsed": unendorsed, "update": update,
        "unsigned": unsigned, "erased": erased, "erase": erase, "erase_by": erase_by, "revoke": revoke,
        "again": again, "tick": tick, "delimit": delimit, "sign": sign, "admit": admit, "ratify": ratify,
        "replace": replace, "announce": announce, "stranger": stranger, "junk": junk,
    }  # fmt: skip


def describe(outcome: Outcome) -> list[str]:
    """What a reviewer reads of one entry."""
    codes = ", ".join(code.name for code in outcome.verdicts)
    told = [f"{outcome.position.index}: {'refused: ' * outcome.refused}{codes}"]
    told += [f"  announce {in_words(notice)}" for notice in outcome.notices]
    told += list(rows(outcome))
    state = outcome.state
    told.append(
        f"  state epoch {state.epoch}, signed {state.signed_epoch}, verifier log {state.verifier_log_size}, "
        f"pending {state.pending_updates}, parked {state.parked_updates}"
    )
    return [*told, f"  digest {outcome.position.digest.hex()}"]


def in_words(notice: notices.Notice) -> str:
    values = [getattr(notice, name) for name in type(notice).__slots__]
    shown = [
        value.hex()[:8] if isinstance(value, bytes) else getattr(value, "name", value) for value in values
    ]
    return " ".join([type(notice).__name__, *map(str, shown)])


def rows(outcome: Outcome) -> Iterator[str]:
    for key in sorted(outcome.writes):
        table, value = Tables.table_of(key), outcome.writes[key]
        if table in UNTOLD or table in COUNTED:
            continue
        name = f"{table.name} {key_in_words(table in NUMBER_FIRST, table.suffix(key))}"
        yield f"  delete {name}" if value is None else f"  put {name}: {len(value)} bytes"
    for table in COUNTED:
        count = sum(Tables.table_of(key) is table for key in outcome.writes)
        if count:
            yield f"  put {table.name}: {count} rows"


def key_in_words(number_first: bool, suffix: bytes) -> str:
    """Numbers in decimal, hashes by their first digits."""
    hashed, number = (suffix[8:], suffix[:8]) if number_first else (suffix[:32], suffix[32:])
    if len(suffix) == 8:
        hashed, number = b"", suffix
    words = [str(int.from_bytes(number, "big"))] if number else []
    return " ".join([*words, hashed.hex()[:8]] if number_first else [hashed.hex()[:8], *words]).strip()


def replayed(text: str) -> str:
    """The transcript with what its commands do now."""
    transcript = Transcript()
    blocks = []
    for block in text.strip().split("\n\n"):
        asked = block.partition("\n----")[0]
        commands = [line for line in asked.splitlines() if line and not line.startswith("#")]
        answers = [answer for line in commands for answer in transcript.run(line)]
        blocks.append("\n".join([asked, "----", *answers]) if answers else asked)
    return "\n\n".join(blocks) + "\n"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_transcript(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    now = replayed(text)
    if os.environ.get("E2EKS_REWRITE") == "1":
        path.write_text(now, encoding="utf-8")
    assert now == text


def test_there_are_transcripts_and_every_word_is_used() -> None:
    texts = [path.read_text(encoding="utf-8") for path in FOLDER.glob("*.txt")]
    lines = [line.split()[0] for text in texts for line in text.splitlines() if line]
    assert set(Transcript.words) <= set(lines)
