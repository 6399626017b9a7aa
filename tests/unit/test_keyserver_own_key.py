"""This replica's key at work elsewhere: noticed in what verifiers show and in the log, kept as evidence, and
the end of signing."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from keyserver import quarantine
from keyserver.lives import AHEAD_MS, Lives
from keyserver.machine import commands, views
from keyserver.machine.commands import SignHead
from keyserver.own_key import KeyWatch, Unanswered, unaccounted
from keyserver.run import Parts, Surroundings
from keyserver.testing import Disk, Person, SmallRealm, running, small_realm
from replication.types import LogEntry
from verifier import encoding, limits
from verifier.crypto import hashing, signatures
from verifier.daemon.evidence import Standing, from_document, judge
from verifier.epoch import compose_head, genesis_chain, replica_message
from verifier.types import Ratification, Signature, SignedHead, Verifier

PATIENCE = 60.0
SMALL = small_realm()
GUARDED = small_realm(verifiers=2)
HERE = "ipv4:127.0.0.1"


def signed_by_the_replica(small: SmallRealm, head: bytes) -> SignedHead:
    parsed = encoding.decode_head(head)
    made = signatures.sign(small.head_seed, replica_message(head, parsed.issue_time_ms))
    ratification = Ratification(parsed.issue_time_ms, (Signature(small.replica, made),))
    return encoding.decode_signed_head(encoding.encode_signed_head(head, [ratification]))


def another_head(small: SmallRealm, epoch: int, **changes: object) -> bytes:
    chain = replace(genesis_chain(small.realm), epoch=epoch - 1)
    fields: dict[str, object] = {
        "root_hash": bytes(32),
        "issue_time_ms": 1_000,
        "history_root": bytes(32),
        "state_digest": bytes(32),
    }
    return compose_head(small.realm, chain, **{**fields, **changes})  # type: ignore[arg-type]


def reachable(small: SmallRealm) -> SmallRealm:
    """The same realm, whose verifiers have addresses."""
    listed = tuple(replace(verifier, address=f"{verifier.name}:1") for verifier in small.realm.verifiers)
    return replace(small, realm=replace(small.realm, verifiers=listed))


async def test_own_heads_are_accounted_for_and_foreign_ones_are_nobodys_business(tmp_path: Path) -> None:
    async with running(SMALL, Disk(tmp_path)) as parts:
        store, signer, realm = parts.replica.store, parts.signer, SMALL.realm
        own = encoding.decode_signed_head(views.signed_head(store, 1))
        assert unaccounted(store, realm, signer, own) is None
        stranger = replace(SMALL, head_seed=bytes(32))
        assert (
            unaccounted(store, realm, signer, signed_by_the_replica(stranger, another_head(SMALL, 9))) is None
        )
        elsewhere = replace(SMALL.realm, hash=bytes(32))
        far = replace(SMALL, realm=elsewhere)
        assert unaccounted(store, realm, signer, signed_by_the_replica(far, another_head(far, 9))) is None


@pytest.mark.parametrize(("epoch", "words"), [(1, "another head"), (9, "knows nothing")])
async def test_own_signatures_that_the_register_does_not_know_are_found(
    epoch: int, words: str, tmp_path: Path
) -> None:
    async with running(SMALL, Disk(tmp_path)) as parts:
        shown = signed_by_the_replica(SMALL, another_head(SMALL, epoch))
        found = unaccounted(parts.replica.store, SMALL.realm, parts.signer, shown)
        assert found is not None
        assert words in found.what


def watch_over(parts: Parts, small: SmallRealm, shown: dict[str, bytes], evidence: Path | None) -> KeyWatch:
    def ask(verifier: Verifier) -> bytes:
        if verifier.name not in shown:
            raise Unanswered("nobody there")
        return shown[verifier.name]

    return KeyWatch(parts.replica, parts.signer, lambda: 5, log_end=0, ask=ask, evidence=evidence)


async def test_a_verifier_that_shows_another_head_ends_signing_and_the_evidence_proves_the_fork(
    tmp_path: Path,
) -> None:
    small = reachable(GUARDED)
    async with running(small, Disk(tmp_path)) as parts:
        other = signed_by_the_replica(small, another_head(small, 1)).encoded
        ours = views.signed_head(parts.replica.store, 1)
        shown = {"v0": ours, "v1": b"nonsense"}
        watch = watch_over(parts, small, shown, tmp_path / "evidence")
        await watch.look()
        assert parts.signer.quarantined == ""
        shown["v1"] = other
        await watch.look()
        assert "verifier v1 ratified a head of epoch 1" in parts.signer.quarantined
        assert "keyserver keys rekey" in parts.signer.quarantined
        (kept,) = (tmp_path / "evidence").iterdir()
        document = from_document(kept.read_bytes())
        assert judge(small.realm, document).standing is Standing.PROVEN
        assert judge(small.realm, document).culprits == (small.replica,)
        assert document.heads == (ours, other)
        assert parts.status.record()["quarantined"] == parts.signer.quarantined


async def test_verifiers_that_do_not_answer_take_no_thread_from_the_replica() -> None:
    """A realm may list more than there are threads for everything that blocks."""
    realm = reachable(small_realm(verifiers=limits.VERIFICATION_POLICY_KEYS - 1)).realm
    asked, let_go = trio.Event(), threading.Event()

    def ask(_: Verifier) -> bytes:
        trio.from_thread.run_sync(asked.set)
        let_go.wait(PATIENCE)
        raise Unanswered

    replica: Any = SimpleNamespace(machine=SimpleNamespace(realm=realm))
    signer: Any = SimpleNamespace(quarantined="")
    watch = KeyWatch(replica, signer, lambda: 5, log_end=0, ask=ask)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.look)
        try:
            with trio.fail_after(PATIENCE):
                await asked.wait()
            assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
        finally:
            let_go.set()


async def test_a_forgotten_signature_stops_a_replica_before_it_signs_anything(tmp_path: Path) -> None:
    small = reachable(GUARDED)
    later = signed_by_the_replica(small, another_head(small, 7)).encoded
    disk = Disk(tmp_path)
    async with running(small, disk) as parts:
        watch = watch_over(parts, small, {"v0": later}, None)
        before = parts.signer.newest_signed()
        await watch.look()
        assert "knows nothing" in parts.signer.quarantined
        assert parts.signer.newest_signed() == before


async def until_quarantined(parts: Parts) -> None:
    with trio.fail_after(PATIENCE):
        while not parts.signer.quarantined:
            await trio.lowlevel.checkpoint()


async def until_applied(parts: Parts) -> None:
    with trio.fail_after(PATIENCE):
        while parts.replica.position.index < parts.log.status().committed_index:
            await trio.lowlevel.checkpoint()


def entry_by(small: SmallRealm, time_ms: int, *made: bytes) -> bytes:
    envelope = commands.encode_envelope(replica=small.replica, time_ms=time_ms, commands=list(made))
    message = commands.envelope_message(small.realm.hash, envelope)
    return commands.encode_log_entry(envelope, signatures.sign(small.head_seed, message), [b""] * len(made))


def a_tick(parts: Parts) -> bytes:
    return commands.encode_command(commands.Tick())


def another_signature(parts: Parts) -> bytes:
    return commands.encode_command(SignHead(1, bytes(32), bytes(64)))


@pytest.mark.parametrize("command", [a_tick, another_signature])
async def test_a_log_entry_by_the_own_key_that_was_not_made_here_ends_signing(
    command: Callable[[Parts], bytes], tmp_path: Path
) -> None:
    async with running(SMALL, Disk(tmp_path)) as parts:
        later_ms = parts.watch._former_ms + 1_000
        await parts.log.propose(entry_by(SMALL, later_ms, command(parts)))
        await until_quarantined(parts)
        assert "log entry" in parts.signer.quarantined


async def test_an_own_entry_may_come_back_from_another_replica_that_has_blanked_it(tmp_path: Path) -> None:
    async with running(SMALL, Disk(tmp_path)) as parts:
        envelope = commands.encode_envelope(
            replica=SMALL.replica, time_ms=parts.watch._former_ms + 1_000, commands=[a_tick(parts)]
        )
        signature = parts.signer.sign_envelope(envelope)
        whole, blanked = (commands.encode_log_entry(envelope, signature, [part]) for part in (b"p", b""))
        assert whole != blanked
        parts.watch.proposed(whole)
        parts.watch.see_entries([LogEntry(10**6, blanked)])
        assert parts.signer.quarantined == ""


@pytest.mark.parametrize("payload", ["junk", "unsigned", "former run"])
async def test_what_anybody_could_put_into_the_log_changes_nothing(payload: str, tmp_path: Path) -> None:
    async with running(SMALL, Disk(tmp_path)) as parts:
        later_ms = parts.watch._former_ms + 1_000
        tick = a_tick(parts)
        stranger = replace(SMALL, head_seed=bytes(32))
        envelope = commands.encode_envelope(replica=SMALL.replica, time_ms=later_ms, commands=[tick])
        made = {
            "junk": b"\xff",
            "unsigned": commands.encode_log_entry(envelope, bytes(64), [b""]),
            "former run": entry_by(SMALL, parts.watch._former_ms, tick),
        }
        assert stranger.replica != SMALL.replica
        await parts.log.propose(made[payload])
        with trio.fail_after(PATIENCE):
            assert await parts.service.update(Person.named("alice", SMALL).update({"ssh": b"1"}), HERE)
        assert parts.signer.quarantined == ""


async def test_what_a_former_life_proposed_may_arrive_late_and_twice_though_the_clock_went_back(
    tmp_path: Path,
) -> None:
    lives, disk = Lives(tmp_path / "ceiling"), Disk(tmp_path)
    before = Surroundings(clock=lambda: 90_000_000)
    await lives.cover(90_000_000)
    async with running(SMALL, disk, around=before, lives=lives):
        pass
    after = Surroundings(clock=lambda: 50_000_000)
    async with running(SMALL, disk, around=after, lives=Lives(tmp_path / "ceiling")) as parts:
        late = entry_by(SMALL, 90_000_000, a_tick(parts))
        for _ in range(2):
            await parts.log.propose(late)
        again = entry_by(SMALL, 50_000_000, a_tick(parts))
        parts.watch.proposed(again)
        for _ in range(2):
            await parts.log.propose(again)
        await until_applied(parts)
        assert parts.signer.quarantined == ""
        ahead_of_all = 90_000_000 + AHEAD_MS + 1
        await parts.log.propose(entry_by(SMALL, ahead_of_all, a_tick(parts)))
        await until_quarantined(parts)


async def test_a_stored_signature_that_the_register_lacks_ends_signing(tmp_path: Path) -> None:
    """A log that an older register is put beside: the signature arrives from the log, not from the signer."""
    first, second = Disk(tmp_path / "first"), Disk(tmp_path / "second")
    for disk in (first, second):
        disk.folder.mkdir()
    async with running(SMALL, first):
        pass
    second.log = first.log  # all of the log, none of the database, an empty register
    async with running(SMALL, second) as parts:
        await until_quarantined(parts)
    assert "that it did not make" in parts.signer.quarantined


def test_evidence_is_about_one_key(tmp_path: Path) -> None:
    made = quarantine.Evidence("register", "what", 1)
    path = quarantine.keep_evidence(tmp_path / "evidence", SMALL.realm, SMALL.replica, made)
    assert path.name.startswith(f"own-key-{SMALL.replica.hex()[:16]}-")
    assert json.loads(path.read_text())["schema"] == "e2eks.evidence/1"
    assert hashing.key_id(bytes(32)).hex()[:16] not in path.name
