"""Tables: one-byte prefixes, each declared once, each of one kind.

A room declares its tables as the attributes of a TableSet; the class cannot be created when two tables
share a prefix. What a row is, replicated or private or this replica's own, is then a fact about its key.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import ClassVar

from kv.keys import prefix_end

PREFIX_BYTES = 1


class Kind(Enum):
    """Who must agree on the rows of a table."""

    REPLICATED = "replicated"  # equal on every replica at one log index, and part of the state digest
    PRIVATE = "private"  # from the private parts of commands: may be blanked, never in the digest
    LOCAL = "local"  # this replica's own: tree pages, derived indexes, caches, the applied index


@dataclass(frozen=True, slots=True)
class Table:
    """The rows whose keys start with `prefix`. The name is the attribute's, in lower case."""

    prefix: bytes
    kind: Kind
    name: str = ""

    def key(self, *parts: bytes) -> bytes:
        """Return the key of a row: the prefix, then the parts joined as they are."""
        return b"".join((self.prefix, *parts))

    def span(self, *parts: bytes) -> tuple[bytes, bytes]:
        """Return (start, stop) of a scan over all rows whose key starts with key(*parts)."""
        start = self.key(*parts)
        return start, prefix_end(start)

    def suffix(self, key: bytes) -> bytes:
        """Return what follows the prefix in a key of this table. Raises ValueError for another's key."""
        if not key.startswith(self.prefix):
            raise ValueError(f"not a key of table {self.name}")
        return key[PREFIX_BYTES:]


class TableSet:
    """The tables of one store: `class Tables(TableSet): ENTRIES = Table(b"e", Kind.REPLICATED)`.

    Subclassing a TableSet adds tables to it. Raises ValueError when the class is made: a prefix that is
    taken, is not one byte, or is 0xff (no key lies above it), or a name given twice.
    """

    _by_prefix: ClassVar[Mapping[int, Table]] = {}

    def __init_subclass__(cls) -> None:
        declared = {name: value for name, value in vars(cls).items() if isinstance(value, Table)}
        by_prefix = dict(cls._by_prefix)
        names = {table.name for table in by_prefix.values()}
        for attribute, table in declared.items():
            named = replace(table, name=attribute.lower())
            if len(named.prefix) != PREFIX_BYTES or named.prefix == b"\xff":
                raise ValueError(f"{cls.__name__}.{attribute}: a prefix is one byte below 0xff")
            if named.name in names:
                raise ValueError(f"{cls.__name__}.{attribute}: the name is taken")
            taken = by_prefix.setdefault(named.prefix[0], named)
            if taken is not named:
                raise ValueError(f"{cls.__name__}.{attribute}: prefix {named.prefix!r} is {taken.name}'s")
            names.add(named.name)
            setattr(cls, attribute, named)
        cls._by_prefix = by_prefix

    @classmethod
    def all(cls) -> tuple[Table, ...]:
        """Return the tables in the order of their prefixes."""
        return tuple(cls._by_prefix[prefix] for prefix in sorted(cls._by_prefix))

    @classmethod
    def table_of(cls, key: bytes) -> Table:
        """Return the table a key belongs to. Raises ValueError when no table has its first byte."""
        table = cls._by_prefix.get(key[0]) if key else None
        if table is None:
            raise ValueError(f"no table of {cls.__name__} has the prefix {key[:PREFIX_BYTES]!r}")
        return table

    @classmethod
    def by_kind(cls, writes: Mapping[bytes, bytes | None]) -> dict[Kind, dict[bytes, bytes | None]]:
        """Return the writes of each kind, in key order. Raises ValueError for a key of no table."""
        found: dict[Kind, dict[bytes, bytes | None]] = {kind: {} for kind in Kind}
        for key in sorted(writes):
            found[cls.table_of(key).kind][key] = writes[key]
        return found
