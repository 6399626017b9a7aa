"""How a member's log lies in its store.

Inside, entries are numbered as Raft does: every leader begins with a no-op, which counts too. Outside they
are numbered densely without those. A row carries both, so that neither can slip unseen, and the link of the
chain over the public parts of the application's entries: the same chain as in every other engine.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from kv.interface import Reader, StorageError, Store
from kv.keys import EVERYTHING, from_u64, u64
from kv.tables import Kind, Table, TableSet
from replication.chain import FIRST_LINK, LINK_BYTES, next_link
from replication.raft.messages import NO_OP
from replication.rows import TAIL_CHECKED, PublicPart

FORMAT = b"e2eks raft log 1"
# Every member's log begins with the same no-op of term 0, so that no log is ever empty.
FIRST_INDEX = 1

_HEAD = struct.Struct(f">QQ{LINK_BYTES}s")  # term, application index, link


class RaftTables(TableSet):
    """The rows of a member's log."""

    FORMAT = Table(b"f", Kind.LOCAL)  # one row: FORMAT
    ENTRIES = Table(b"e", Kind.LOCAL)  # u64 raft index -> Row
    NO_OPS = Table(b"n", Kind.LOCAL)  # u64 raft index of an entry that is none of the application's
    VOTE = Table(b"v", Kind.LOCAL)  # one row: u64 term, name of the member voted for in it
    COMMIT = Table(b"c", Kind.LOCAL)  # one row: u64 raft index known to be committed; written with others


_ENTRIES = RaftTables.ENTRIES.key()


@dataclass(frozen=True, slots=True)
class Row:
    """One entry as it is stored. Raft's index is its key."""

    term: int
    application: int  # index of the newest application entry up to and including this one
    link: bytes
    command: bytes


class Places:
    """Where application entries are: between the no-ops, one for each leader there was. Immutable."""

    __slots__ = ("_keys", "no_ops")

    def __init__(self, no_ops: tuple[int, ...]) -> None:
        self.no_ops = no_ops
        # The i-th no-op precedes the application entries from this index on.
        self._keys = [place - number for number, place in enumerate(no_ops)]

    def application(self, index: int) -> int:
        """Return how many application entries there are up to and including Raft's `index`."""
        return index - bisect_right(self.no_ops, index)

    def raft(self, application: int) -> int:
        """Return Raft's index of an application entry."""
        return application + bisect_right(self._keys, application)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What a log is found to be."""

    last: int
    link: bytes
    places: Places
    term: int
    vote: str | None
    commit: int


def encode_row(term: int, application: int, link: bytes, command: bytes) -> bytes:
    """Return the value of an entry's row."""
    return _HEAD.pack(term, application, link) + command


def entry_key(index: int) -> bytes:
    """Return the key of the entry with Raft's `index`."""
    return _ENTRIES + u64(index)


def vote_row(term: int, vote: str | None) -> bytes:
    """Encode the row of VOTE."""
    return u64(term) + (vote or "").encode()


def is_row(value: bytes) -> bool:
    """Tell whether a value is long enough to be an entry's row."""
    return len(value) > _HEAD.size


def decode_row(index: int, value: bytes) -> Row:
    """Decode the value of an entry's row. Raises StorageError."""
    if not is_row(value):
        raise StorageError(f"the row of Raft entry {index} is damaged")
    term, application, link = _HEAD.unpack_from(value)
    return Row(term, application, link, value[_HEAD.size :])


def read_row(reader: Reader, index: int) -> Row:
    """Return the entry with Raft's `index`. Raises StorageError when there is none."""
    value = reader.get(entry_key(index))
    if value is None:
        raise StorageError(f"the log has lost its Raft entry {index}")
    return decode_row(index, value)


def read_rows(reader: Reader, lo: int, hi: int) -> Iterator[tuple[int, Row]]:
    """Iterate over exactly the entries lo <= index < hi. Raises StorageError when one is missing."""
    expected = lo
    for key, value in reader.scan(entry_key(lo), entry_key(hi)):
        if key != entry_key(expected):
            break
        yield expected, decode_row(expected, value)
        expected += 1
    if expected < hi:
        raise StorageError(f"the log has lost its Raft entry {expected}")


def check_rows(reader: Reader, public_part: PublicPart, lo: int, hi: int) -> Row:
    """Check that entries lo <= index < hi continue what precedes them; return the last one, hi > lo.

    Raises StorageError naming the first that does not.
    """
    before = Row(0, 0, FIRST_LINK, NO_OP) if lo == FIRST_INDEX else read_row(reader, lo - 1)
    for index, row in read_rows(reader, lo, hi):
        application, link = before.application, before.link
        if row.command != NO_OP:
            application += 1
            link = next_link(link, application, public_part(row.command[1:]))
        if (row.application, row.link) != (application, link) or row.term < before.term:
            raise StorageError(f"Raft entry {index} (entry {application}) does not continue the log")
        before = row
    return before


def open_log(store: Store, public_part: PublicPart) -> Opened:
    """Read how the log stands, making it when the store is empty. Raises StorageError for damage."""
    form = store.get(RaftTables.FORMAT.key())
    if form is None and next(store.scan(*EVERYTHING, limit=1), None) is None:
        _begin(store)
    elif form != FORMAT:
        raise StorageError("this is not the store of a member's log, or one of another format")
    newest = next(store.scan(*RaftTables.ENTRIES.span(), reverse=True, limit=1), None)
    if newest is None:
        raise StorageError("the log has lost all its entries")
    last = _number(RaftTables.ENTRIES.suffix(newest[0]))
    read_row(store, FIRST_INDEX)
    tail = check_rows(store, public_part, max(FIRST_INDEX, last - TAIL_CHECKED + 1), last + 1)
    term, vote = _vote(store)
    commit = _number(store.get(RaftTables.COMMIT.key()) or u64(FIRST_INDEX))
    no_ops = tuple(_number(RaftTables.NO_OPS.suffix(key)) for key, _ in store.scan(*RaftTables.NO_OPS.span()))
    places = Places(no_ops)
    if commit > last or term < tail.term:
        raise StorageError(f"the log ends at Raft entry {last}, but knew of more: a lost end")
    if no_ops[:1] != (FIRST_INDEX,) or no_ops[-1] > last or places.application(last) != tail.application:
        raise StorageError("the log does not agree with the places of its no-ops")
    return Opened(last=last, link=tail.link, places=places, term=term, vote=vote, commit=commit)


def first_rows() -> Iterator[tuple[bytes, bytes]]:
    """Iterate over the rows of every log's first entry."""
    yield entry_key(FIRST_INDEX), encode_row(0, 0, FIRST_LINK, NO_OP)
    yield RaftTables.NO_OPS.key(u64(FIRST_INDEX)), b""


def _begin(store: Store) -> None:
    store.write(
        {
            RaftTables.FORMAT.key(): FORMAT,
            **dict(first_rows()),
            RaftTables.VOTE.key(): vote_row(0, None),
            RaftTables.COMMIT.key(): u64(FIRST_INDEX),
        }
    )


def _vote(store: Store) -> tuple[int, str | None]:
    value = store.get(RaftTables.VOTE.key())
    if value is None:
        raise StorageError("the log has lost its vote")
    try:
        return from_u64(value[:8]), value[8:].decode() or None
    except ValueError as error:
        raise StorageError("the row of the vote is damaged") from error


def _number(encoded: bytes) -> int:
    try:
        return from_u64(encoded)
    except ValueError as error:
        raise StorageError("the log holds a row that is none of its own") from error
