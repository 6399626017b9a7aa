"""What a log on a disk holds, whichever engine kept it, for whoever checks, copies or restores it.

A reader of a store is enough; nothing is opened, started or changed here.
"""

from collections.abc import Iterable, Iterator

from kv.interface import Reader, StorageError
from kv.keys import u64
from replication import rows as local
from replication.chain import FIRST_LINK, next_link
from replication.raft import rows as raft
from replication.raft.messages import APPLICATION, NO_OP

Rows = Iterator[tuple[bytes, bytes]]
# The term of entries that were restored: every member of the restored cluster begins with the same.
RESTORED_TERM = 1


class EntryDamaged(StorageError):
    """An entry is missing, is no entry, or does not continue the chain. `index` is its dense index."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"entry {index}: {reason}")
        self.index = index
        self.reason = reason


def stored_entries(reader: Reader, public_part: local.PublicPart) -> Iterator[tuple[int, bytes]]:
    """Iterate over (index, payload) of all entries of a log, from 1 on, as long as they continue its chain.

    A member of a cluster may hold entries at the end that are not committed. Raises EntryDamaged at the
    first that does not fit, StorageError when the disk fails.
    """
    form = reader.get(local.LogTables.FORMAT.key())
    stored = _raft_entries(reader) if form == raft.FORMAT else _local_entries(reader)
    link = FIRST_LINK
    for index, found, payload in stored:
        link = next_link(link, index, public_part(payload))
        if found != link:
            raise EntryDamaged(index, "the entry does not continue the chain of the log")
        yield index, payload


def restored_rows(payloads: Iterable[bytes], public_part: local.PublicPart, *, raft_member: bool) -> Rows:
    """Iterate over the rows of a log that holds these payloads, all committed, for an empty store.

    The log of a member of a Raft cluster is only good together with those of all others, made from the same
    payloads: a living cluster has its own numbering, and a member that is restored into it must begin empty.
    """
    link = FIRST_LINK
    last = 0
    yield local.LogTables.FORMAT.key(), raft.FORMAT if raft_member else local.FORMAT
    if raft_member:
        yield from raft.first_rows()
    for last, payload in enumerate(payloads, 1):
        link = next_link(link, last, public_part(payload))
        if raft_member:
            row = raft.encode_row(RESTORED_TERM, last, link, APPLICATION + payload)
            yield raft.entry_key(last + raft.FIRST_INDEX), row
        else:
            yield local.entry_key(last), link + payload
    if raft_member:
        yield raft.RaftTables.VOTE.key(), raft.vote_row(RESTORED_TERM, None)
        yield raft.RaftTables.COMMIT.key(), u64(last + raft.FIRST_INDEX)


def _local_entries(reader: Reader) -> Iterator[tuple[int, bytes, bytes]]:
    for index, (key, row) in enumerate(reader.scan(*local.LogTables.ENTRIES.span()), 1):
        if key != local.entry_key(index) or len(row) < len(FIRST_LINK):
            raise EntryDamaged(index, "the row is missing, or another row is in its place")
        yield index, row[: len(FIRST_LINK)], row[len(FIRST_LINK) :]


def _raft_entries(reader: Reader) -> Iterator[tuple[int, bytes, bytes]]:
    index = 0
    scanned = reader.scan(*raft.RaftTables.ENTRIES.span())
    for place, (key, value) in enumerate(scanned, raft.FIRST_INDEX):
        if key != raft.entry_key(place) or not raft.is_row(value):
            raise EntryDamaged(index + 1, "the row is missing, or another row is in its place")
        row = raft.decode_row(place, value)
        index += row.command != NO_OP
        if row.application != index:
            raise EntryDamaged(index, "the entry has another number in its row")
        if row.command != NO_OP:
            yield index, row.link, row.command[len(APPLICATION) :]
