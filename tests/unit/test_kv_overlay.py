"""An overlay shows its own changes over its base."""

import pytest

from kv.memory import MemoryStore
from kv.overlay import Overlay


def based() -> tuple[MemoryStore, Overlay]:
    store = MemoryStore()
    store.write({b"a": b"1", b"c": b"1", b"e": b"1"})
    return store, Overlay(store)


def test_own_changes_hide_the_base_and_leave_it_alone() -> None:
    store, overlay = based()
    overlay.put(b"a", b"2")
    overlay.put(b"b", b"2")
    overlay.put(b"c", None)
    assert [overlay.get(bytes((letter,))) for letter in b"abcde"] == [b"2", b"2", None, None, b"1"]
    assert list(overlay.scan(b"", b"\xff")) == [(b"a", b"2"), (b"b", b"2"), (b"e", b"1")]
    assert list(overlay.scan(b"b", b"e", reverse=True)) == [(b"b", b"2")]
    assert list(store.scan(b"", b"\xff")) == [(b"a", b"1"), (b"c", b"1"), (b"e", b"1")]
    assert overlay.writes == {b"a": b"2", b"b": b"2", b"c": None}


def test_a_limit_counts_the_rows_shown() -> None:
    _, overlay = based()
    for key in (b"a", b"c"):
        overlay.put(key, None)
    overlay.put(b"f", b"2")
    assert list(overlay.scan(b"", b"\xff", limit=1)) == [(b"e", b"1")]
    assert list(overlay.scan(b"", b"\xff", limit=2)) == [(b"e", b"1"), (b"f", b"2")]
    assert list(overlay.scan(b"", b"\xff", limit=1, reverse=True)) == [(b"f", b"2")]
    assert list(overlay.scan(b"", b"\xff", limit=0)) == []


def test_rows_can_be_deleted_while_they_are_scanned() -> None:
    _, overlay = based()
    overlay.put(b"b", b"2")
    for limit in (None, 10):
        seen = []
        for key, _ in overlay.scan(b"", b"\xff", limit=limit):
            seen.append(key)
            overlay.put(b"e", None)
            overlay.put(b"bb", b"3")
        assert seen == ([b"a", b"b", b"c", b"e"] if limit is None else [b"a", b"b", b"bb", b"c"])


def test_a_child_is_merged_or_dropped() -> None:
    store, parent = based()
    parent.put(b"b", b"2")
    child = Overlay(parent)
    child.put(b"b", None)
    child.put(b"d", b"3")
    assert list(child.scan(b"a", b"e")) == [(b"a", b"1"), (b"c", b"1"), (b"d", b"3")]
    child.discard()
    assert child.writes == {}
    assert list(child.scan(b"", b"\xff")) == list(parent.scan(b"", b"\xff"))
    child.put(b"a", None)
    child.merge_into_parent()
    assert parent.writes == {b"b": b"2", b"a": None}
    assert child.writes == {}
    store.write(parent.writes)
    assert [key for key, _ in store.scan(b"", b"\xff")] == [b"b", b"c", b"e"]


def test_few_new_keys_among_many_are_put_in_order() -> None:
    _, overlay = based()
    for number in range(100):
        overlay.put(b"b%02d" % number, b"2")
    assert len(list(overlay.scan(b"b", b"c"))) == 100
    overlay.put(b"b500", b"3")
    overlay.put(b"b", b"3")
    keys = [key for key, _ in overlay.scan(b"b", b"c")]
    assert keys == sorted(keys)
    assert len(keys) == 102


def test_only_a_child_has_a_parent() -> None:
    _, overlay = based()
    with pytest.raises(TypeError):
        overlay.merge_into_parent()
