"""Rows not yet written, seen as if they were: what lets one batch hold many steps.

An Overlay is read like the store beneath it and collects what should be written. A child Overlay collects
the changes of one step; it is merged into its parent when the step is applied and dropped when it is not.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import islice

from kv.interface import Reader
from kv.merge import Row, overlaid

# Below one new key in so many, inserting each into the order is cheaper than sorting all again.
INSERT_SHARE = 16


class Overlay:
    """A Reader that shows its own changes over `base`. For one thread.

    `writes` is what to give to Store.write: read it freely, change it only by put().
    """

    __slots__ = ("_order", "_unordered", "base", "writes")

    def __init__(self, base: Reader) -> None:
        self.base = base
        self.writes: dict[bytes, bytes | None] = {}
        self._order: list[bytes] = []
        self._unordered: list[bytes] = []

    def put(self, key: bytes, value: bytes | None) -> None:
        """Set the row, or delete it with None (recorded as a delete whether the row exists or not)."""
        if key not in self.writes:
            self._unordered.append(key)
        self.writes[key] = value

    def get(self, key: bytes) -> bytes | None:
        """Return the own value when there is one, else the base's. Raises StorageError as the base does."""
        if key in self.writes:
            return self.writes[key]
        return self.base.get(key)

    def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False, limit: int | None = None
    ) -> Iterator[Row]:
        """Iterate over own and base rows as one. Raises StorageError as the base does."""
        order = self._ordered_keys()
        first, last = bisect_left(order, start), bisect_left(order, stop)
        keys = order[first:last]
        if reverse:
            keys.reverse()
        # Each own change hides at most one row of the base, so this many rows of it are enough.
        wanted = None if limit is None else limit + len(keys)
        older = self.base.scan(start, stop, reverse=reverse, limit=wanted)
        if limit is None:
            newer = [(key, self.writes[key]) for key in keys]
            return overlaid(older, iter(newer), reverse=reverse)
        # Read now rather than at leisure: a short scan need not copy every change of a long range first.
        merged = overlaid(older, ((key, self.writes[key]) for key in keys), reverse=reverse)
        return iter(list(islice(merged, limit)))

    def merge_into_parent(self) -> None:
        """Give all changes to the Overlay beneath and start empty. Raises TypeError over anything else."""
        if not isinstance(self.base, Overlay):
            raise TypeError("only an overlay over an overlay has a parent to merge into")
        for key, value in self.writes.items():
            self.base.put(key, value)
        self.discard()

    def discard(self) -> None:
        """Forget all changes: the overlay shows its base again. `writes` is a new, empty dict."""
        self.writes = {}
        self._order = []
        self._unordered = []

    def _ordered_keys(self) -> list[bytes]:
        if len(self._unordered) * INSERT_SHARE < len(self._order):
            for key in self._unordered:
                insort(self._order, key)
        elif self._unordered:
            self._order.extend(self._unordered)
            self._order.sort()
        self._unordered.clear()
        return self._order
