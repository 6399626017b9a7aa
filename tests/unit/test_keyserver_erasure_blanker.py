"""The blanker: how a replica pays what an erasure owes its own disk, whatever comes between."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from asking import HERE, PATIENCE, SMALL
from e2eks.v1 import client_pb2
from erasing import KEY, erase, known_of, paid, private_bytes

from keyserver import erasure
from keyserver.erasure import Blanker
from keyserver.machine import commands, private_parts
from keyserver.machine.erasure import owed_blankings
from keyserver.machine.state import load_position
from keyserver.machine.tables import Tables
from keyserver.testing import Disk, Person, running
from kv.interface import StorageError, Store
from kv.memory import MemoryStore
from kv.tracing import TracingStore
from replication.local import LocalLog


@pytest.fixture
def alice() -> Person:
    return Person.named("alice", SMALL)


class Reluctant(TracingStore):
    """A store whose compaction goes wrong as often as the test says: False, or an error."""

    def __init__(self, store: Store, outcomes: list[bool | StorageError]) -> None:
        super().__init__(store)
        self._outcomes = outcomes

    def compact(self, keys: Collection[bytes]) -> bool:
        outcome = self._outcomes.pop(0) if self._outcomes else True
        if isinstance(outcome, StorageError):
            raise outcome
        return outcome and super().compact(keys)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasure, "REST_S", 0.001)
    monkeypatch.setattr(erasure, "READERS_REST_S", 0.001)


async def test_a_purge_that_must_wait_for_readers_is_tried_again(tmp_path: Path, alice: Person) -> None:
    disk, outcomes = Disk(tmp_path), list[bool | StorageError]([False, False])
    async with running(SMALL, disk, over=lambda store: Reluctant(store, outcomes)) as parts:
        await parts.service.update(alice.update({"ssh": KEY}), HERE)
        await parts.service.erase(erase(alice), HERE)
        await paid(parts)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert b"e2eks_blanking_entries 0.0" in parts.metrics.text()
    assert outcomes == []
    assert known_of(disk, alice) == []


async def test_a_purge_that_fails_ends_the_replica_and_is_made_up_for(tmp_path: Path, alice: Person) -> None:
    disk = Disk(tmp_path)
    failure = StorageError("said the test")
    with pytest.RaisesGroup(StorageError, flatten_subgroups=True):
        async with running(SMALL, disk, over=lambda store: Reluctant(store, [failure])) as parts:
            await parts.service.update(alice.update({"ssh": KEY}), HERE)
            await parts.service.erase(erase(alice), HERE)
            await trio.sleep_forever()
    async with running(SMALL, disk) as parts:
        await paid(parts)
    assert known_of(disk, alice) == []


async def test_nothing_is_rewritten_while_the_disk_has_no_room(tmp_path: Path, alice: Person) -> None:
    disk = Disk(tmp_path)
    async with running(SMALL, disk) as parts:
        await parts.service.update(alice.update({"ssh": KEY}), HERE)
        submit = parts.proposer.submit

        def then_hold(command: commands.Command, *others: Any) -> bytes:
            command_id = submit(command, *others)
            if isinstance(command, commands.Erase):
                parts.proposer.hold("the test", "no room")
            return command_id

        parts.proposer.submit = then_hold  # type: ignore[method-assign]
        await parts.service.erase(erase(alice), HERE)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert owed_blankings(parts.replica.store, 1)
        parts.proposer.release("the test")
        parts.replica.applied.wake()
        await paid(parts)
    assert known_of(disk, alice) == []


@asynccontextmanager
async def parts_at_rest(disk: Disk) -> AsyncIterator[tuple[MemoryStore, LocalLog]]:
    """Database and log of a replica that does not run."""
    store = MemoryStore(disk.database)
    log = LocalLog(MemoryStore(disk.log), commands.public_part)
    await log.start(load_position(store).index + 1)
    try:
        yield store, log
    finally:
        await log.stop()
        store.close()


async def test_a_crash_between_any_two_steps_leaves_the_duty(
    tmp_path: Path, alice: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blanker ends after each number of its acts; the next start pays all the same."""

    async def nothing(_: Blanker) -> None:
        await trio.sleep_forever()

    acts = ("rewrite_private", "compact", "write_beside")
    for number, act in enumerate(acts):
        folder = tmp_path / act
        folder.mkdir()
        disk = Disk(folder)
        person = Person.named(f"person-{number}", SMALL)
        with monkeypatch.context() as patch:
            patch.setattr(Blanker, "run", nothing)
            async with running(SMALL, disk) as parts:
                await parts.service.update(person.update({"ssh": KEY}), HERE)
                await parts.service.erase(erase(person), HERE)
                owed = owed_blankings(parts.replica.store, 10)
                assert owed
                holder = parts.replica if act == "write_beside" else parts.log

                async def crash(*_: object) -> bool:
                    raise KeyboardInterrupt

                patch.setattr(holder, act, crash)
                with pytest.raises(KeyboardInterrupt):
                    await Blanker(parts.replica, parts.log).pay(owed)
                assert owed_blankings(parts.replica.store, 10) == owed
        async with parts_at_rest(disk) as (store, _):
            assert owed_blankings(store, 10) == owed
        async with running(SMALL, disk) as parts:
            await paid(parts)
        assert known_of(disk, person) == []


async def test_parts_of_refused_updates_leave_the_log_too(tmp_path: Path, alice: Person) -> None:
    disk = Disk(tmp_path)
    async with running(SMALL, disk) as parts:
        await parts.service.update(alice.update({"ssh": b"kept"}), HERE)
        person = replace(alice, entry=None)
        asked = client_pb2.UpdateRequest.FromString(person.update({"ssh": KEY}))
        contents = private_parts.encode_private_contents(alice.user_id, asked.profile, asked.profile_nonce)
        part = private_parts.encode_private_part(bytes(32), contents)
        parts.proposer.submit(commands.Tick(), part)
        await parts.service.update(alice.update({"ssh": b"kept too"}), HERE)
        await paid(parts)
    data = private_bytes(disk)
    assert KEY not in data
    assert b"kept too" in data


async def test_a_replica_replays_a_log_that_was_blanked_meanwhile(tmp_path: Path, alice: Person) -> None:
    """A database that is older than its log: the lost rows come back, the erased do not."""
    disk, bob = Disk(tmp_path), Person.named("bob", SMALL)
    async with running(SMALL, disk) as parts:
        await parts.service.update(alice.update({"ssh": KEY}), HERE)
        await parts.service.update(bob.update({"ssh": b"bob's"}), HERE)
        await parts.service.erase(erase(alice), HERE)
        await paid(parts)
        position = parts.replica.position
    fresh = Disk(tmp_path, log=disk.log)
    (tmp_path / "register").unlink()
    async with running(SMALL, fresh) as parts:
        with trio.fail_after(PATIENCE):
            while parts.replica.position.index < position.index:
                await parts.replica.applied.turn().wait()
        assert not list(parts.replica.store.scan(*Tables.PROFILES.span(alice.index)))
        assert len(list(parts.replica.store.scan(*Tables.PROFILES.span(bob.index)))) == 1
