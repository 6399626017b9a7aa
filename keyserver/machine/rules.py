"""Rules levels: what differs from one to the next, and when a realm moves on.

A realm moves from one level to the next once every replica has announced that it knows it. The level begins
with a head, and holds for the entries behind its delimiter, so a verifier or client that does not know it
stops at that head, before it could misjudge anything. A replica of an older version halts at that delimiter.
What a level decides stands in `Rules`; a level that was released is never changed: its logs replay for ever.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from keyserver.machine import digest
from keyserver.machine.rows import decode_u64
from keyserver.machine.tables import Tables
from kv.interface import Reader


@dataclass(frozen=True, slots=True)
class Rules:
    """What a level decides: how the writes of an entry are encoded for the state digest."""

    encode_writes: Callable[[Mapping[bytes, bytes | None]], bytes]


LEVELS: Final[Mapping[int, Rules]] = {1: Rules(encode_writes=digest.encode_writes)}


def announced(reader: Reader, replica: bytes) -> int:
    """The newest level that this replica (key id) said it knows; 0 if it said nothing."""
    row = reader.get(Tables.ANNOUNCED.key(replica))
    return 0 if row is None else decode_u64(row)


def level_after(reader: Reader, rules: int, replicas: Iterable[bytes]) -> int:
    """The level of the next head: one more than `rules` if all replicas have announced that they know it."""
    return rules + all(announced(reader, replica) > rules for replica in replicas)
