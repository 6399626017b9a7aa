"""Faults, planted one at a time: what a disk, a mistaken copy or an intruder could do to one row."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random

from e2eks.v1 import command_pb2

from kept.replica import Kept, log_rows
from keyserver.copies.check import LEFT_OUT, LOG
from keyserver.copies.check_register import REGISTER
from keyserver.machine.tables import Tables
from kv.tables import Table
from replication.chain import LINK_BYTES
from replication.rows import LogTables, entry_key

Rows = dict[bytes, bytes]


@dataclass(frozen=True)
class Planted:
    """A spoiled copy. `table`: where the fault is; a report that finds it names this table."""

    table: str
    kind: str
    kept: Kept


# Of rows. Each changes `rows`, which are those with the prefix, and returns whether it could.


def flip(rng: Random, rows: Rows, prefix: bytes) -> bool:
    """One bit of one value."""
    key = pick(rng, rows, prefix, needs_value=True)
    if key is None:
        return False
    value = bytearray(rows[key])
    at = rng.randrange(8 * len(value))
    value[at // 8] ^= 1 << at % 8
    rows[key] = bytes(value)
    return True


def cut(rng: Random, rows: Rows, prefix: bytes) -> bool:
    """The end of a value is gone."""
    key = pick(rng, rows, prefix, needs_value=True)
    if key is None:
        return False
    rows[key] = rows[key][: rng.randrange(len(rows[key]))]
    return True


def lose(rng: Random, rows: Rows, prefix: bytes) -> bool:
    """A row is gone."""
    key = pick(rng, rows, prefix)
    if key is None:
        return False
    del rows[key]
    return True


def swap(rng: Random, rows: Rows, prefix: bytes) -> bool:
    """Two rows have each other's values."""
    one, other = pick(rng, rows, prefix), pick(rng, rows, prefix)
    if one is None or other is None or rows[one] == rows[other]:
        return False
    rows[one], rows[other] = rows[other], rows[one]
    return True


def add(rng: Random, rows: Rows, prefix: bytes) -> bool:
    """A row is there a second time, under another key."""
    key = pick(rng, rows, prefix)
    value = rows[key] if key is not None else rng.randbytes(40)
    new = prefix + (key or bytes(40))[1:-1] + rng.randbytes(2)
    if new in rows:
        return False
    rows[new] = value
    return True


ROW_KINDS: tuple[Callable[[Random, Rows, bytes], bool], ...] = (flip, cut, lose, swap, add)


def pick(rng: Random, rows: Rows, prefix: bytes, *, needs_value: bool = False) -> bytes | None:
    """The key of some row with the prefix."""
    keys = sorted(key for key, value in rows.items() if key.startswith(prefix) and (value or not needs_value))
    return rng.choice(keys) if keys else None


# Of the log


def spoil_payload(rng: Random, rows: Rows, _: bytes) -> bool:
    """One bit of the public part of an entry."""
    key = entry_key(rng.randrange(1, len(rows)))
    row = rows[key]
    entry = command_pb2.LogEntry()
    try:
        entry.ParseFromString(row[LINK_BYTES:])
    except Exception:
        return False  # an entry that never was one
    envelope = bytearray(entry.envelope)
    if not envelope:
        return False
    envelope[rng.randrange(len(envelope))] ^= 1 << rng.randrange(8)
    entry.envelope = bytes(envelope)
    rows[key] = row[:LINK_BYTES] + entry.SerializeToString(deterministic=True)
    return True


def spoil_link(rng: Random, rows: Rows, _: bytes) -> bool:
    """One bit of a link."""
    key = entry_key(rng.randrange(1, len(rows)))
    row = bytearray(rows[key])
    row[rng.randrange(LINK_BYTES)] ^= 1 << rng.randrange(8)
    rows[key] = bytes(row)
    return True


def lose_end(_: Random, rows: Rows, __: bytes) -> bool:
    """The newest entry is gone."""
    del rows[entry_key(len(rows) - 1)]
    return True


LOG_KINDS = (spoil_payload, spoil_link, lose_end, lose, swap)


# Of the register


def lose_newest(_: Random, kept: Kept) -> None:
    rows = dict(kept.recorded.rows)
    del rows[max(rows)]
    kept.recorded = replace(kept.recorded, rows=rows)


def other(field: str) -> Callable[[Random, Kept], None]:
    """One field of a row is another one."""

    def plant(rng: Random, kept: Kept) -> None:
        rows = dict(kept.recorded.rows)
        epoch = rng.choice(sorted(rows))
        value = getattr(rows[epoch], field)
        changed = value + 1 if isinstance(value, int) else bytes((value[0] ^ 1,)) + value[1:]
        rows[epoch] = replace(rows[epoch], **{field: changed})
        kept.recorded = replace(kept.recorded, rows=rows)

    plant.__name__ = f"other {field}"
    return plant


REGISTER_KINDS = (
    lose_newest, *map(other, ("head_hash", "timestamp_ms", "log_index", "digest", "signature")),
)  # fmt: skip


def kinds() -> Iterator[tuple[str, Callable[[Random, Kept], bool]]]:
    """Every (table, way to spoil it)."""
    for table in Tables.all():
        if table in LEFT_OUT:
            continue
        for spoil in ROW_KINDS:
            yield table.name, of_rows(table, spoil)
    for spoil in (flip, cut, swap):  # a cache may lose rows
        yield Tables.VRF_CACHE.name, of_rows(Tables.VRF_CACHE, spoil)
    for spoil in LOG_KINDS:
        yield LOG, of_log(spoil)
    for plant in REGISTER_KINDS:
        yield REGISTER, of_register(plant)


def of_rows(table: Table, spoil: Callable[[Random, Rows, bytes], bool]) -> Callable[[Random, Kept], bool]:
    def plant(rng: Random, kept: Kept) -> bool:
        return spoil(rng, kept.rows, table.prefix)

    plant.__name__ = spoil.__name__
    return plant


def of_log(spoil: Callable[[Random, Rows, bytes], bool]) -> Callable[[Random, Kept], bool]:
    def plant(rng: Random, kept: Kept) -> bool:
        return spoil(rng, kept.log, LogTables.ENTRIES.prefix)

    plant.__name__ = spoil.__name__
    return plant


def of_register(spoil: Callable[[Random, Kept], None]) -> Callable[[Random, Kept], bool]:
    def plant(rng: Random, kept: Kept) -> bool:
        spoil(rng, kept)
        return True

    plant.__name__ = spoil.__name__
    return plant


def planted(rng: Random, kept: Kept, number: int) -> Iterator[Planted]:
    """So many spoiled copies of `kept`: every kind in turn, again and again, each time elsewhere."""
    ways = list(kinds())
    made = 0
    while made < number:
        before = made
        for table, plant in ways:
            spoiled = kept.copy()
            if made < number and plant(rng, spoiled):
                made += 1
                yield Planted(table, plant.__name__, spoiled)
        assert made > before


def blanked(kept: Kept, payloads: list[bytes]) -> Kept:
    """The copy with another log of the same public parts."""
    changed = kept.copy()
    changed.log = log_rows(payloads)
    return changed
