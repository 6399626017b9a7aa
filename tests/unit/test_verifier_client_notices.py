"""A notice that the realm's history ends: what a third party who has the realm file makes of it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from samples import BOB, REALM, REPLICAS, VERIFIERS, Key, key, make_realm
from simulated_realm import SimulatedRealm
from simulated_realm.command import Shell

from verifier import history_break
from verifier.client.client import now_ms
from verifier.daemon.evidence import Standing, judge
from verifier.daemon.evidence_files import read_evidence
from verifier.errors import E2eksError
from verifier.history_break import Notice
from verifier.types import Realm

USER = "bob@example.test"
MADE_MS = 1_800_000_000_000
NEW_REPLICAS = (*REPLICAS[:2], key("replica-new"))


@pytest.fixture
def world() -> SimulatedRealm:
    world = SimulatedRealm(clock=now_ms)
    world.put(USER, {"age": b"age1bob"}, BOB)
    world.close()
    return world


@pytest.fixture
def shell(world: SimulatedRealm, empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(world, empty_home, monkeypatch)


def signed(notice: Notice, signers: tuple[Key, ...], realm: Realm = REALM) -> Notice:
    message = history_break.message(realm, notice)
    return replace(notice, signatures=tuple(signer.sign(message) for signer in signers))


def notice_of(world: SimulatedRealm, epoch: int, signers: tuple[Key, ...] = REPLICAS) -> Notice:
    notice = Notice(replace(world.head(epoch)), 7, "00" * 32, MADE_MS)
    return signed(notice, signers, world.realm)


def file_of(shell: Shell, notice: Notice) -> str:
    return shell.file("notice.json", history_break.encode(shell.world.realm, notice))


def test_a_notice_that_a_majority_has_signed_is_believed_without_a_server(shell: Shell) -> None:
    shell.world.close()
    run = shell("verify-notice", file_of(shell, notice_of(shell.world, 1)), "-o", "json")
    assert run.exit == 0
    assert run.json["epoch"] == 1
    assert run.json["head_hash"] == shell.world.head(1).head.hash.hex()
    assert run.json["made_ms"] == MADE_MS
    assert run.json["signed_by"] == sorted(replica.id.hex() for replica in REPLICAS)
    assert (run.json["replicas"], run.json["seen_epoch"]) == (3, 0)
    assert shell.world.calls == []
    path = file_of(shell, notice_of(shell.world, 1, REPLICAS[1:]))
    run = shell("verify-notice", path, "--realm-file", str(shell.realm_file))
    assert (run.exit, run.stdout) == (0, f"the history of {REALM.name} ends with epoch 1\n")


def test_what_was_seen_after_the_end_is_said_to_be_lost(shell: Shell) -> None:
    for _ in range(3):
        shell.world.close()
    assert shell("lookup", USER).exit == 0
    run = shell("verify-notice", file_of(shell, notice_of(shell.world, 2)))
    assert run.exit == 0
    assert "newest epoch seen here 4: what the 2 after the last one changed is lost" in run.stderr


@pytest.mark.parametrize(
    "signers", [(), REPLICAS[:1], (REPLICAS[0], *VERIFIERS)], ids=["none", "one", "strangers"]
)
def test_exit_7_too_few_replicas_have_signed_it(shell: Shell, signers: tuple[Key, ...]) -> None:
    run = shell("verify-notice", file_of(shell, notice_of(shell.world, 1, signers)), "-o", "json")
    assert (run.exit, run.json["error"]) == (7, "notice")
    assert f"{len(signers) and 1} of 3 replicas" in run.stderr
    assert "all hosts have signed" in run.stderr


def another_time(world: SimulatedRealm) -> Notice:
    return replace(notice_of(world, 1), made_ms=MADE_MS + 1)


def another_head(world: SimulatedRealm) -> Notice:
    world.close()
    return replace(notice_of(world, 1), head=world.head(2))


def head_of_nobody(world: SimulatedRealm) -> Notice:
    notice = notice_of(world, 1)
    return signed(replace(notice, head=world.directory.signed(1, replicas=REPLICAS[:1])), REPLICAS)


def another_realm(world: SimulatedRealm) -> Notice:
    other = SimulatedRealm(make_realm(verifiers=VERIFIERS, replicas=(key("r-other"),)))
    other.replicas.append((key("r-other"),))
    other.directory.close()
    return notice_of(other, 1)


@pytest.mark.parametrize("make", [another_time, another_head, head_of_nobody, another_realm])
def test_exit_3_a_notice_that_does_not_verify(shell: Shell, make: Callable[[SimulatedRealm], Notice]) -> None:
    run = shell("verify-notice", file_of(shell, make(shell.world)), "-o", "json")
    assert run.exit == 3
    assert len(run.json["evidence"]) == 1


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"[]",
        b'"x"',
        b"{}",
        b'{"schema": "e2eks.history-break/1"}',
        b"[" * 100_000,
        bytes(300_000),
        b"\xff",
    ],
    ids=["empty", "list", "text", "object", "fields", "depth", "size", "bytes"],
)
def test_exit_3_a_file_that_is_no_notice(shell: Shell, contents: bytes) -> None:
    run = shell("verify-notice", shell.file("notice.json", contents))
    assert run.exit == 3
    assert shell.world.calls == []


def test_exit_8_a_notice_of_another_head_than_the_one_seen_here(shell: Shell) -> None:
    assert shell("lookup", USER).exit == 0
    other = SimulatedRealm(clock=now_ms)
    other.close()
    run = shell("verify-notice", file_of(shell, notice_of(other, 1)), "-o", "json")
    assert run.exit == 8
    [evidence] = run.json["evidence"]
    assert judge(REALM, read_evidence(Path(evidence))).standing is Standing.PROVEN


# Replicas that changed


@pytest.fixture
def changed(shell: Shell) -> Shell:
    """Head 2 says that one of the three replicas is another one from epoch 3 on."""
    shell.world.close(next_replicas=NEW_REPLICAS)
    shell.world.close(next_replicas=(NEW_REPLICAS[1], NEW_REPLICAS[2], key("replica-newer")))
    shell.world.close()
    return shell


def test_later_replicas_are_learned_from_a_server_or_were_before(changed: Shell) -> None:
    last = (NEW_REPLICAS[2], key("replica-newer"))
    changed.world.replicas[3] = last  # only those whom nobody knows from the realm file have signed it
    path = file_of(changed, notice_of(changed.world, 4, last))
    changed.world.down = set(changed.world.addresses)
    run = changed("verify-notice", path)
    assert run.exit == 3
    assert "judge the notice where a lookup was verified" in run.stderr
    changed.world.down = set(changed.world.addresses[:2])
    assert changed("verify-notice", path).exit == 0
    changed.world.down = set(changed.world.addresses)
    assert changed("verify-notice", path).exit == 0


def test_those_stand_for_it_whom_the_last_head_puts_in_office(changed: Shell) -> None:
    former, latter = NEW_REPLICAS[:2], (NEW_REPLICAS[2], key("replica-newer"))
    assert changed("lookup", USER).exit == 0
    assert changed("verify-notice", file_of(changed, notice_of(changed.world, 3, former))).exit == 7
    assert changed("verify-notice", file_of(changed, notice_of(changed.world, 3, latter))).exit == 0


# The bytes


def test_a_notice_reads_back_as_it_was_written(world: SimulatedRealm) -> None:
    notice = notice_of(world, 1)
    data = history_break.encode(REALM, notice)
    assert history_break.decode(REALM, data) == notice
    assert history_break.encode(REALM, history_break.decode(REALM, data)) == data


def test_no_changed_byte_changes_what_is_believed(
    world: SimulatedRealm, rng: Random, count: Callable[[int], int]
) -> None:
    notice = notice_of(world, 1)
    data = history_break.encode(REALM, notice)
    for _ in range(count(200)):
        place = rng.randrange(len(data))
        damaged = data[:place] + bytes((data[place] ^ rng.randrange(1, 256),)) + data[place + 1 :]
        try:
            found = history_break.decode(REALM, damaged)
            history_break.verify(REALM, REALM.genesis_policy, found)
        except E2eksError:
            continue
        assert (found.head.head, found.made_ms) == (notice.head.head, notice.made_ms)
    document = json.loads(data)
    for name in document:
        with pytest.raises(E2eksError):
            history_break.decode(REALM, json.dumps(document | {name: None}).encode())
