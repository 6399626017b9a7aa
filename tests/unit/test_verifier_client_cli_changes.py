"""The command e2eks: publishing, changing and ending entries, identities and contexts."""

import errno
import json
from pathlib import Path

import pytest
from e2eks.v1 import client_pb2
from samples import ALICE, REALM
from simulated_realm import SimulatedRealm
from simulated_realm.command import OTHER, Shell, realm_of_bob

from verifier import realm as realms
from verifier.errors import Reason, Refused

USER, NOBODY = "alice@example.test", "nobody@example.test"
SSH = b"ssh-ed25519 AAAA alice\n"


@pytest.fixture
def world() -> SimulatedRealm:
    return realm_of_bob()


@pytest.fixture
def shell(world: SimulatedRealm, empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(world, empty_home, monkeypatch)


# register, update, revoke


def test_a_registration_makes_a_key_and_a_revocation(shell: Shell) -> None:
    run = shell("register", USER, "--key", f"ssh={shell.file('id.pub', SSH)}", "-o", "json")
    assert run.exit == 0
    assert (run.json["schema"], run.json["version"]) == ("e2eks.update/1", 0)
    assert Path(run.json["revocation"]).stat().st_mode & 0o777 == 0o600
    assert shell("lookup", USER, "--app", "ssh", "--raw").raw == SSH
    assert shell("identity", "list", "-o", "json").json["items"][0]["pending"] == 0


def test_keys_come_from_stdin_too_but_never_private_ones(shell: Shell) -> None:
    assert shell("register", USER, "--key", "age=-", stdin=b"age1alice").exit == 0
    assert shell("lookup", USER, "--app", "age").stdout == "age1alice\n"
    for secret in (
        b"-----BEGIN OPENSSH PRIVATE KEY-----\n",
        b"AGE-SECRET-KEY-1ABC",
        b"-----BEGIN PRIVATE KEY-----",
    ):
        run = shell("update", USER, "--key", f"x={shell.file('secret', secret)}")
        assert run.exit == 2
        assert "private" in run.stderr


def test_an_update_changes_adds_and_removes_keys(shell: Shell) -> None:
    shell("register", USER, "--key", f"ssh={shell.file('id.pub', SSH)}", "--key", "age=-", stdin=b"age1")
    assert shell("update", USER, "--key", "pgp=-", "--remove", "age", stdin=b"pgp").exit == 0
    document = shell("lookup", USER, "-o", "json").json
    assert document["keys"] == {"pgp": "pgp", "ssh": SSH.decode()}
    assert document["version"] == 1
    assert shell("update", USER, "--remove", "age").exit == 2


def test_a_rotated_key_takes_over(shell: Shell) -> None:
    shell("register", USER, "--key", "age=-", stdin=b"age1")
    before = shell("identity", "export", USER).stdout.split()
    assert shell("update", USER, "--rotate").exit == 0
    after = shell("identity", "export", USER).stdout.split()
    assert after[:-1] == before
    assert shell("update", USER, "--key", "age=-", stdin=b"age2").exit == 0
    entry, _ = shell.world.directory.entries[USER]
    assert entry.update_policy is not None
    assert [key.hex() for key in entry.update_policy.keys.values()] == after[-1:]


def test_another_device_may_be_given_power_over_the_entry(shell: Shell) -> None:
    shell("register", USER, "--key", "age=-", "--also", ALICE.public.hex(), stdin=b"age1")
    entry, _ = shell.world.directory.entries[USER]
    assert entry.update_policy is not None
    assert ALICE.id in entry.update_policy.keys


def test_a_revocation_needs_no_key_but_the_one_signed_in_advance(shell: Shell) -> None:
    shell("register", USER, "--key", "age=-", stdin=b"age1")
    for path in (shell.home / ".local/share/e2eks/identities").glob("*.json"):
        path.unlink()
    assert shell("revoke", USER).exit == 0
    assert shell("lookup", USER).exit == 9
    assert shell("register", USER, "--key", "age=-", stdin=b"age2").exit == 0


def test_a_revocation_can_be_signed_on_the_day(shell: Shell) -> None:
    shell("register", USER, "--key", "age=-", stdin=b"age1")
    for path in (shell.home / ".local/share/e2eks/revocations").glob("*"):
        path.unlink()
    assert shell("revoke", USER, "--certificate", "/nonexistent").exit == 2
    assert shell("revoke", USER, "--yes").exit == 0
    assert shell("revoke", USER).exit == 6


def test_a_change_that_was_never_answered_goes_on_with_the_same_update(shell: Shell) -> None:
    world = shell.world

    def lost(raw: bytes) -> bytes:
        raise Refused(Reason.NOT_RATIFIED_IN_TIME, "said the test")

    world.tampering["Update"] = lost
    key = f"ssh={shell.file('id.pub', SSH)}"
    assert shell("register", USER, "--key", key.partition("=")[0] + "=" + key.partition("=")[2]).exit == 7
    assert shell("identity", "list", "-o", "json").json["items"][0]["pending"] == 1
    del world.tampering["Update"]
    run = shell("register", USER, "--key", key)
    assert run.exit == 0
    assert "earlier run" in run.stderr
    updates = [
        client_pb2.UpdateRequest.FromString(raw) for method, raw in world.requests if method == "Update"
    ]
    assert len({request.update.entry for request in updates}) == 1
    assert len({request.request_id for request in updates}) == 1
    assert shell("identity", "list", "-o", "json").json["items"][0]["pending"] == 0


def test_other_keys_make_another_update_of_what_was_never_answered(shell: Shell) -> None:
    shell.world.refusals["Update"] = Refused(Reason.NOT_READY, "said the test")
    assert shell("register", USER, "--key", "age=-", stdin=b"age1").exit == 6
    del shell.world.refusals["Update"]
    assert shell("register", USER, "--key", "age=-", stdin=b"age2").exit == 0
    assert shell("lookup", USER, "--app", "age").stdout == "age2\n"


def test_a_name_of_another_realm_makes_no_identity(shell: Shell) -> None:
    assert shell("register", "alice@example.org", "--key", "age=-", stdin=b"age1").exit == 6
    assert shell("identity", "list", "-o", "json").json["items"] == []


# identity and context


def test_an_identity_is_shown_without_its_secrets(shell: Shell) -> None:
    made = shell("identity", "new", USER, "-o", "json")
    assert made.exit == 0
    assert shell("identity", "new", USER).exit == 2
    backup = shell("identity", "backup", USER, "--yes")
    seed = backup.json["keys"][0]["seed"]
    for arguments in (("export", USER), ("list",)):
        shown = shell("identity", *arguments, "-o", "json")
        assert made.json["keys"][0]["public_key"] in shown.stdout
        assert seed not in shown.stdout + shown.stderr
    assert shell("identity", "backup", USER).exit == 2


def test_contexts_are_added_chosen_and_listed(shell: Shell) -> None:
    assert shell.trust.exit == 0
    assert realms.fingerprint(REALM) in shell.trust.stderr
    assert shell("context", "add", str(shell.realm_file), "--name", "second").exit == 0
    assert shell("lookup", OTHER).exit == 2
    assert shell("lookup", OTHER, "--context", "second").exit == 0
    assert shell("lookup", OTHER, E2EKS_CONTEXT="second").exit == 0
    assert shell("context", "use", "second").exit == 0
    assert shell("lookup", OTHER).exit == 0
    items = shell("context", "list", "-o", "json").json["items"]
    assert [(item["name"], item["current"]) for item in items] == [("example.test", False), ("second", True)]
    assert shell("context", "list").stdout.splitlines()[1].startswith("* second")
    lines = shell("context", "list", "-o", "jsonl").stdout.splitlines()
    assert [json.loads(line)["schema"] for line in lines] == ["e2eks.contexts/1"] * 2


def test_a_context_with_another_fingerprint_is_refused(shell: Shell) -> None:
    arguments = ("context", "add", str(shell.realm_file), "--name", "second", "--fingerprint")
    assert shell(*arguments, "E2EKS1-AAAA").exit == 2
    assert shell(*arguments, realms.fingerprint(REALM)).exit == 0


def test_an_address_is_trusted_by_fingerprint_alone(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    published = realms.realm_json(REALM)
    monkeypatch.setattr("verifier.client.transport.fetch_realm_json", lambda *_: published)
    run = shell("context", "add", "ks.example.test", "--name", "second")
    assert run.exit == 2
    assert realms.fingerprint(REALM) in run.stderr
    trusted = ("--fingerprint", realms.fingerprint(REALM))
    assert shell("context", "add", "ks.example.test", "--name", "second", *trusted).exit == 0


def test_who_stops_reading_is_no_bug(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("verifier.client.session.Session.write", gone)
    assert shell("context", "list", "-o", "json").stderr == ""


def test_what_is_ended_at_the_keyboard_is_no_bug(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("verifier.client.client.Client.ask", end)
    run = shell("lookup", OTHER)
    assert run.exit == 130
    assert run.stderr.splitlines()[-1] == "stopped"


def test_a_question_answered_with_no_ends_it(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verifier.client.cli_identity.is_interactive", lambda: True)
    assert shell("identity", "new", USER).exit == 0
    run = shell("identity", "backup", USER, stdin=b"n\n")
    assert (run.exit, run.stdout) == (130, "")
