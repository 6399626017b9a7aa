"""The log of a member on its disk."""

from collections.abc import Collection

from kv.interface import Store
from replication.rows import PublicPart
from replication.types import LogEntry


class Journal:
    """The durable log of one member; opening blocks on the disk and raises StorageError for damage.

    Properties and read(), verify_chain() may be used by any thread while another one is in a turn.
    """

    last_application: int  # newest application index that is durable here, committed or not
    committed_to: int  # newest application index that is known to be committed and durable here

    def __init__(self, store: Store, public_part: PublicPart, *, where: str = "the log") -> None:
        raise NotImplementedError

    def read(self, lo: int, hi: int, max_bytes: int) -> tuple[LogEntry, ...]:
        """As ReplicatedLog.read. Any thread."""
        raise NotImplementedError

    def verify_chain(self, lo: int, hi: int) -> None:
        """As ReplicatedLog.verify_chain. Any thread."""
        raise NotImplementedError

    def rewrite_private(self, index: int, payload: bytes) -> None:
        """As ReplicatedLog.rewrite_private. Between turns only."""
        raise NotImplementedError

    def compact(self, indices: Collection[int]) -> bool:
        """As ReplicatedLog.compact. Any thread, but not while these entries are rewritten."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the store. Idempotent."""
        raise NotImplementedError
