"""Where names lie, remembered: bounded for strangers' names, for good for registered ones, limited by
address.
"""

import pytest

from keyserver.machine.codes import Halt
from keyserver.rate_limits import Buckets, Rate
from keyserver.vrf_cache import Recent, VrfCache, cache_key
from kv.memory import MemoryStore
from verifier.errors import Reason, Refused

HERE, THERE = "ipv4:192.0.2.1", "ipv4:192.0.2.2"
UNLIMITED = Buckets[str](Rate(1.0, 1e9), "too many names")


class Counted:
    """A VRF that counts."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, user_id: str) -> tuple[bytes, bytes]:
        self.asked.append(user_id)
        return user_id.encode().ljust(32, b"."), user_id.encode().ljust(80, b"!")


def cache(store: MemoryStore, prove: Counted, **options: object) -> VrfCache:
    return VrfCache(store, prove, **{"limiter": UNLIMITED, **options})  # type: ignore[arg-type]


def test_a_name_is_computed_once_while_it_is_remembered() -> None:
    prove, seen = Counted(), list[str]()
    names = cache(MemoryStore(), prove, observe=seen.append)
    first = names.locate("a@x", HERE)
    assert names.locate("a@x", HERE) == first == prove("a@x")
    assert seen == ["computed", "memory"]


def test_nothing_is_computed_to_recall_a_name() -> None:
    store, prove = MemoryStore(), Counted()
    names = cache(store, prove)
    assert names.recall("a@x") is None
    found = names.locate("a@x", None)
    assert names.recall("a@x") == found
    names.keep("a@x", found)
    store.write(dict(names.take_rows()))
    assert cache(store, prove).recall("a@x") == found
    assert prove.asked == ["a@x"]


def test_memory_is_bounded_and_forgets_who_was_not_asked_for() -> None:
    prove = Counted()
    names = cache(MemoryStore(), prove, capacity=2)
    for name in ("a", "b", "a", "c", "a", "b"):
        names.locate(name, HERE)
    assert prove.asked == ["a", "b", "c", "b"]


def test_a_registered_name_gets_a_row_once_and_is_never_computed_again() -> None:
    store, prove = MemoryStore(), Counted()
    names = cache(store, prove)
    found = names.locate("a@x", HERE)
    names.keep("a@x", found)
    names.keep("a@x", found)
    rows = names.take_rows()
    assert list(rows) == [cache_key("a@x")]
    assert names.take_rows() == {}
    store.write(dict(rows))
    names.keep("a@x", found)
    assert names.take_rows() == {}
    seen: list[str] = []
    later = cache(store, prove, observe=seen.append)
    assert later.locate("a@x", HERE) == found
    later.keep("a@x", found)
    assert (seen, later.take_rows(), prove.asked) == (["table"], {}, ["a@x"])


def test_a_damaged_row_halts() -> None:
    store = MemoryStore()
    store.write({cache_key("a@x"): b"short"})
    with pytest.raises(Halt):
        cache(store, Counted()).locate("a@x", HERE)


def test_rows_owed_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keyserver.vrf_cache.ROWS_OWED", 2)
    names = cache(MemoryStore(), Counted())
    for name in ("a", "b", "c"):
        names.keep(name, names.locate(name, HERE))
    assert len(names.take_rows()) == 2


def test_misses_are_limited_by_address_and_hits_are_not() -> None:
    now = [0.0]
    limiter = Buckets[str](Rate(2.0, 3.0), "too many names", seconds=lambda: now[0])
    names = cache(MemoryStore(), Counted(), limiter=limiter)
    for name in ("a", "b", "c"):
        names.locate(name, HERE)
    with pytest.raises(Refused) as caught:
        names.locate("d", HERE)
    assert caught.value.reason is Reason.RATE_LIMITED
    names.locate("a", HERE)
    names.locate("d", THERE)
    now[0] = 0.5  # one token has come back
    names.locate("e", HERE)
    with pytest.raises(Refused):
        names.locate("f", HERE)
    now[0] = 1000.0  # never more than the bucket holds
    for name in ("f", "g", "h"):
        names.locate(name, HERE)
    with pytest.raises(Refused):
        names.locate("i", HERE)


def test_recent_keeps_the_most_recently_used() -> None:
    recent: Recent[str, int] = Recent(2)
    recent.put("a", 1)
    recent.put("b", 2)
    assert recent.get("a") == 1
    recent.put("c", 3)
    assert (recent.get("a"), recent.get("b"), recent.get("c"), len(recent)) == (1, None, 3, 2)
