"""Tables are told apart by construction."""

import pytest

from kv.tables import Kind, Table, TableSet


class Example(TableSet):
    ENTRIES = Table(b"e", Kind.REPLICATED)
    NAMES = Table(b"n", Kind.PRIVATE)
    PAGES = Table(b"\xfe", Kind.LOCAL)


def test_a_table_takes_its_name_from_the_attribute() -> None:
    assert [table.name for table in Example.all()] == ["entries", "names", "pages"]
    assert Example.ENTRIES.name == "entries"


def test_the_kind_of_a_row_follows_from_its_first_byte() -> None:
    assert Example.table_of(b"e\x00\x01").kind is Kind.REPLICATED
    assert Example.table_of(b"n").kind is Kind.PRIVATE
    assert Example.table_of(b"\xfe1") == Example.PAGES


@pytest.mark.parametrize("key", [b"", b"x", b"\xff", b"\x00"])
def test_a_key_of_no_table_is_refused(key: bytes) -> None:
    with pytest.raises(ValueError):
        Example.table_of(key)
    with pytest.raises(ValueError):
        Example.by_kind({key: b""})


def test_writes_of_one_kind_come_in_key_order() -> None:
    writes: dict[bytes, bytes | None] = {b"e2": None, b"n1": b"x", b"e1": b"y"}
    by_kind = Example.by_kind(writes)
    assert list(by_kind[Kind.REPLICATED].items()) == [(b"e1", b"y"), (b"e2", None)]
    assert by_kind[Kind.PRIVATE] == {b"n1": b"x"}
    assert by_kind[Kind.LOCAL] == {}


def test_two_tables_with_one_prefix_are_refused() -> None:
    with pytest.raises(ValueError, match="prefix"):
        type("Clash", (TableSet,), {"A": Table(b"a", Kind.LOCAL), "B": Table(b"a", Kind.PRIVATE)})


def test_a_subclass_adds_tables_and_cannot_take_a_prefix_or_name() -> None:
    more = type("More", (Example,), {"MORE": Table(b"m", Kind.LOCAL)})
    assert issubclass(more, TableSet)
    assert more.table_of(b"m").kind is Kind.LOCAL
    assert more.table_of(b"e").kind is Kind.REPLICATED
    with pytest.raises(ValueError):
        Example.table_of(b"m")
    with pytest.raises(ValueError):
        type("Clash", (Example,), {"OTHER": Table(b"e", Kind.REPLICATED)})
    with pytest.raises(ValueError):
        type("Clash", (Example,), {"ENTRIES": Table(b"q", Kind.REPLICATED)})


@pytest.mark.parametrize("prefix", [b"", b"ab", b"\xff"])
def test_a_prefix_is_one_byte_with_room_above(prefix: bytes) -> None:
    with pytest.raises(ValueError):
        type("Bad", (TableSet,), {"A": Table(prefix, Kind.LOCAL)})


def test_two_sets_do_not_see_each_other() -> None:
    other = type("Other", (TableSet,), {"A": Table(b"e", Kind.LOCAL)})
    assert issubclass(other, TableSet)
    assert other.table_of(b"e").kind is Kind.LOCAL
    assert Example.table_of(b"e").kind is Kind.REPLICATED


def test_keys_and_spans_of_a_table() -> None:
    assert Example.ENTRIES.key(b"ab", b"", b"c") == b"eabc"
    assert Example.ENTRIES.span() == (b"e", b"f")
    assert Example.ENTRIES.span(b"a\xff") == (b"ea\xff", b"eb")
    assert Example.ENTRIES.suffix(b"exyz") == b"xyz"
    with pytest.raises(ValueError):
        Example.ENTRIES.suffix(b"nxyz")
