"""How a local log lies in its store: one row an entry, its link before its payload, and one row of format."""

from collections.abc import Callable, Iterator

from kv.interface import Reader, StorageError, Store
from kv.keys import EVERYTHING, from_u64, u64
from kv.tables import Kind, Table, TableSet
from replication.chain import FIRST_LINK, LINK_BYTES, next_link

PublicPart = Callable[[bytes], bytes]

FORMAT = b"e2eks local log 1"
# Rows checked at opening: a crash or a mistaken copy does its damage at the end, and opening must stay quick.
TAIL_CHECKED = 256


class LogTables(TableSet):
    """The rows of a local log."""

    FORMAT = Table(b"f", Kind.LOCAL)  # one row: FORMAT
    ENTRIES = Table(b"e", Kind.LOCAL)  # u64 index -> link, payload


def entry_key(index: int) -> bytes:
    """Return the key of an entry's row."""
    return LogTables.ENTRIES.key(u64(index))


def open_tail(store: Store, public_part: PublicPart) -> tuple[int, bytes]:
    """Return the index and the link of the newest entry, (0, FIRST_LINK) in an empty store.

    Checks that the first entry is there and that the newest TAIL_CHECKED continue the chain. Marks an
    empty store as a log. Raises StorageError for damage, or for a store that is not such a log.
    """
    form = store.get(LogTables.FORMAT.key())
    if form is None and next(store.scan(*EVERYTHING, limit=1), None) is None:
        store.write({LogTables.FORMAT.key(): FORMAT})
    elif form != FORMAT:
        raise StorageError("this is not the store of a local log, or one of another format")
    newest = next(store.scan(*LogTables.ENTRIES.span(), reverse=True, limit=1), None)
    if newest is None:
        return 0, FIRST_LINK
    last = _index_of(newest[0])
    if store.get(entry_key(1)) is None:
        raise StorageError("the log has lost its entry 1")
    return last, check_links(store, public_part, max(1, last - TAIL_CHECKED + 1), last + 1)


def entry_rows(reader: Reader, lo: int, hi: int) -> Iterator[tuple[int, bytes, bytes]]:
    """Iterate over (index, link, payload) of exactly the entries lo <= index < hi.

    Raises StorageError when one is missing or too short to be a row.
    """
    expected = lo
    for key, row in reader.scan(entry_key(lo), entry_key(hi)):
        if key != entry_key(expected):
            break
        if len(row) < LINK_BYTES:
            raise StorageError(f"the row of entry {expected} is damaged")
        yield expected, row[:LINK_BYTES], row[LINK_BYTES:]
        expected += 1
    if expected < hi:
        raise StorageError(f"the log has lost its entry {expected}")


def check_links(reader: Reader, public_part: PublicPart, lo: int, hi: int) -> bytes:
    """Check that entries lo <= index < hi continue the chain from entry lo - 1; return the last link.

    Raises StorageError naming the first entry that does not.
    """
    link = FIRST_LINK
    if lo > 1:
        ((_, link, _),) = entry_rows(reader, lo - 1, lo)
    for index, stored, payload in entry_rows(reader, lo, hi):
        link = next_link(link, index, public_part(payload))
        if link != stored:
            raise StorageError(f"entry {index} does not continue the chain of the log")
    return link


def _index_of(key: bytes) -> int:
    try:
        return from_u64(LogTables.ENTRIES.suffix(key))
    except ValueError as error:
        raise StorageError("the log holds a row that is no entry") from error
