"""Two ordered runs of rows read as one, the newer hiding the older."""

from collections.abc import Iterator

Row = tuple[bytes, bytes]
Change = tuple[bytes, bytes | None]


def overlaid(older: Iterator[Row], newer: Iterator[Change], *, reverse: bool) -> Iterator[Row]:
    """Merge two runs, both in key order (or both reversed), keys distinct within a run.

    At equal keys the newer row wins; a newer None hides the older row.
    """
    change = next(newer, None)
    for row in older:
        while change is not None and _precedes(change[0], row[0], reverse):
            if change[1] is not None:
                yield change[0], change[1]
            change = next(newer, None)
        if change is None or change[0] != row[0]:
            yield row
            continue
        if change[1] is not None:
            yield change[0], change[1]
        change = next(newer, None)
    while change is not None:
        if change[1] is not None:
            yield change[0], change[1]
        change = next(newer, None)


def _precedes(change: bytes, row: bytes, reverse: bool) -> bool:
    return change > row if reverse else change < row
