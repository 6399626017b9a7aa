"""The command `e2eks`: what it prints where, and each of its exit codes."""

import json
import re
from pathlib import Path

import click
import pytest
from samples import REALM, VERIFIERS
from simulated_realm import SimulatedRealm
from simulated_realm.command import OTHER, Shell, realm_of_bob

from verifier import encoding
from verifier.client import failure, show
from verifier.client.cli import COMMANDS, load_commands
from verifier.client.cli_lookup import parse_time
from verifier.client.outcome import Exit
from verifier.client.session import seconds_of
from verifier.errors import NotRatified, Reason, Refused, VerificationError

USER, NOBODY = "alice@example.test", "nobody@example.test"
SSH = b"ssh-ed25519 AAAA alice\n"


@pytest.fixture
def world() -> SimulatedRealm:
    return realm_of_bob()


@pytest.fixture
def shell(world: SimulatedRealm, empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(world, empty_home, monkeypatch)


# Exit codes, contract section 4


def test_exit_0_a_verified_answer(shell: Shell) -> None:
    assert shell("lookup", OTHER).exit == 0


def test_exit_1_a_bug_without_a_traceback(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verifier.client.client.Client.ask", lambda *_: 1 // 0)
    run = shell("lookup", OTHER, "-o", "json")
    assert run.exit == 1
    assert "ZeroDivisionError" in run.stderr
    assert "Traceback" not in run.stderr
    assert run.json["exit"] == 1
    with pytest.raises(ZeroDivisionError):
        shell("lookup", OTHER, E2EKS_DEBUG="1")


@pytest.mark.parametrize(
    "arguments",
    [
        ("lookup",),
        ("nonsense",),
        ("lookup", "Not An Address"),
        ("lookup", OTHER, "--raw"),
        ("lookup", OTHER, "--epoch", "0"),
        ("lookup", OTHER, "--timeout", "soon"),
        ("lookup", OTHER, "--context", "unknown"),
        ("lookup", OTHER, "-c", "/nonexistent/config.toml"),
        ("verify", "/nonexistent/proof.bin"),
        ("verify", "/dev/null", "--at", "yesterday"),
        ("register", OTHER),
        ("register", USER, "--key", "ssh"),
        ("register", USER, "--key", "ssh=/nonexistent"),
        ("register", USER, "--key", "ssh=/dev/null", "--also", "00"),
        ("register", USER, "--key", "ssh=/dev/null", "--proof", "client-certificate"),
        ("update", OTHER),
        ("update", OTHER, "--rotate"),
        ("identity", "export", USER),
        ("context", "use", "unknown"),
        ("context", "add", "a..b:4625"),
        ("context", "add", "x" * 300),
        ("register", USER, "--key", "ssh=~nobody-of-that-name/id.pub"),
        ("verify", "/dev/null", "--at", "9" * 5000),
    ],
    ids=lambda arguments: " ".join(arguments)[:60],
)
def test_exit_2_usage_or_configuration(shell: Shell, arguments: tuple[str, ...]) -> None:
    run = shell(*arguments)
    assert run.exit == 2
    assert "Traceback" not in run.stderr


def test_exit_2_a_realm_file_that_is_none(shell: Shell) -> None:
    realm_file, proof = shell.file("bad.json", b"{}"), shell.file("proof.bin", b"")
    assert shell("verify", proof, "--realm-file", realm_file).exit == 2
    assert shell("context", "add", realm_file).exit == 2


def test_exit_3_a_proof_that_does_not_verify_with_evidence(shell: Shell) -> None:
    shell.world.tampering["Lookup"] = lambda raw: raw[:-1] + bytes((raw[-1] ^ 1,))
    run = shell("lookup", OTHER, "-o", "json")
    assert run.exit == 3
    assert run.json["error"] == "commitment"
    [evidence] = run.json["evidence"]
    assert evidence in run.stderr
    assert json.loads(Path(evidence).read_bytes())["kind"] == "proof"
    assert "keys" not in run.json


def test_exit_3_a_saved_file_that_is_no_proof(shell: Shell) -> None:
    for contents in (b"", b"\0", b"not a proof at all", bytes(300_000)):
        assert shell("verify", shell.file("proof.bin", contents)).exit == 3


def test_exit_4_proven_absent(shell: Shell) -> None:
    run = shell("lookup", NOBODY, "-o", "json")
    assert run.exit == 4
    assert run.json["status"] == "absent"
    assert shell("lookup", NOBODY).raw == b""
    assert shell("lookup", OTHER, "--app", "pgp").exit == 4


def test_exit_5_unreachable(shell: Shell) -> None:
    shell.world.down = set(shell.world.addresses)
    assert shell("lookup", OTHER).exit == 5


def test_exit_6_refused_with_the_reason(shell: Shell) -> None:
    shell.world.refusals["Lookup"] = Refused(Reason.RATE_LIMITED, "said the test")
    run = shell("lookup", OTHER, "-o", "json")
    assert run.exit == 6
    assert run.json["error"] == "RATE_LIMITED"
    assert "RATE_LIMITED" in run.stderr
    assert shell("lookup", "alice@example.org").exit == 6


def test_exit_7_not_ratified_stale_or_rolled_back(shell: Shell) -> None:
    world = shell.world
    world.verifiers = VERIFIERS[:1]
    assert shell("lookup", OTHER).exit == 7
    world.verifiers = VERIFIERS
    assert shell("lookup", OTHER).exit == 0
    world.tampering["Lookup"] = lambda _: world.lookup(OTHER, 1)
    world.close()
    assert shell("lookup", OTHER).exit == 0
    del world.tampering["Lookup"]
    assert shell("lookup", OTHER).exit == 0
    world.behind = dict.fromkeys(world.addresses, 1)
    assert shell("lookup", OTHER).exit == 7
    world.behind = {}
    world.refusals["Lookup"] = Refused(Reason.NOT_RATIFIED_IN_TIME, "said the test")
    assert shell("lookup", OTHER).exit == 7


def test_exit_8_a_fork_with_both_heads_as_evidence(shell: Shell) -> None:
    world = shell.world
    world.close()
    other = world.without_last()
    other.put(USER, {"ssh": b"evil"})
    other.close()
    assert shell("lookup", OTHER).exit == 0
    shell.world = other
    run = shell("lookup", OTHER, "-o", "json")
    assert run.exit == 8
    assert json.loads(Path(run.json["evidence"][0]).read_bytes())["kind"] == "fork"


def test_exit_9_erased_or_revoked(shell: Shell) -> None:
    shell.world.erase(OTHER)
    shell.world.close()
    run = shell("lookup", OTHER, "-o", "json")
    assert (run.exit, run.json["status"]) == (9, "erased")
    assert "keys" not in run.json
    shell.world.revoke(OTHER)
    shell.world.close()
    run = shell("lookup", OTHER, "-o", "json")
    assert (run.exit, run.json["status"]) == (9, "revoked")


# lookup


def test_data_is_on_stdout_and_the_checks_on_stderr(shell: Shell) -> None:
    run = shell("lookup", OTHER)
    assert run.stdout == "age  age1bob\nbin  AP8=\nssh\n  # mine\n  ssh-ed25519 AAAA bob\n"
    assert [re.split("  +", line.strip())[0] for line in run.stderr.splitlines()] == [
        "✓ name → index",
        "✓ index → entry",
        "✓ epoch 1",
        "✓ fresh",
        "✓ first contact",
    ]
    assert "3 of 3 replicas + verifiers v0, v1, v2" in run.stderr
    assert "\x1b" not in run.stderr
    assert "not rolled back" in shell("lookup", OTHER).stderr
    assert shell("-q", "lookup", OTHER).stderr == ""


def test_the_json_of_a_lookup(shell: Shell) -> None:
    document = shell("lookup", OTHER, "-o", "json").json
    assert document["schema"] == "e2eks.lookup/1"
    assert document["keys"] == {"age": "age1bob", "bin": "AP8=", "ssh": "# mine\nssh-ed25519 AAAA bob\n"}
    assert document["encoding"] == {"age": "text", "bin": "base64", "ssh": "text"}
    assert (document["epoch"], document["version"], document["verifiers"]) == (1, 0, ["v0", "v1", "v2"])
    line = shell("lookup", OTHER, "-o", "jsonl")
    assert line.stdout.count("\n") == 1
    assert line.json["schema"] == "e2eks.lookup/1"


def test_one_key_as_text_or_as_it_is(shell: Shell) -> None:
    assert shell("lookup", OTHER, "--app", "age").stdout == "age1bob\n"
    assert shell("lookup", OTHER, "--app", "bin", "--raw").raw == b"\0\xff"
    assert shell("lookup", OTHER, "--app", "age", "-o", "json").json["keys"] == {"age": "age1bob"}


def test_what_a_terminal_could_obey_is_never_printed(shell: Shell) -> None:
    shell.world.put(USER, {"evil": b"\x1b]0;owned\x07", "bidi": "a\u202eb".encode()})
    shell.world.close()
    run = shell("lookup", USER)
    assert "\x1b" not in run.stdout
    assert "\u202e" not in run.stdout


def test_a_historic_answer_says_so(shell: Shell) -> None:
    shell.world.close()
    run = shell("lookup", OTHER, "--epoch", "1")
    assert run.exit == 0
    assert "epoch 1 of 2" in run.stderr
    assert "fresh" not in run.stderr
    document = shell("lookup", OTHER, "--epoch", "1", "-o", "json").json
    assert (document["epoch"], document["newest_epoch"], document["historic"]) == (1, 2, True)


def test_verbose_says_who_is_asked(shell: Shell) -> None:
    assert shell("lookup", OTHER, "-v").exit == 0


# verify


def test_a_saved_proof_is_judged_without_a_server(shell: Shell) -> None:
    proof = str(shell.home / "bob.bin")
    assert shell("lookup", OTHER, "--save", proof).exit == 0
    assert Path(proof).read_bytes() == shell.world.lookup(OTHER, 1)
    shell.world.down = set(shell.world.addresses)
    assert shell("verify", proof, "--realm-file", str(shell.realm_file)).exit == 0
    run = shell("verify", proof, "--user", OTHER, "-o", "json")
    assert (run.exit, run.json["user"]) == (0, OTHER)
    assert shell("verify", proof, "--user", USER).exit == 3
    issued = shell.world.head(1).head.issue_time_ms
    assert shell("verify", proof, "--at", str(issued + REALM.epoch_ttl_ms + 2000)).exit == 7
    assert shell("verify", proof, "--at", "2001-01-01T00:00:00Z").exit == 7


def test_saved_proofs_of_absence_and_of_a_fork(shell: Shell) -> None:
    world = shell.world
    world.close()
    absent = str(shell.home / "absent.bin")
    assert shell("lookup", NOBODY, "--save", absent).exit == 4
    assert shell("verify", absent).exit == 4
    other = world.without_last()
    other.put(USER, {"ssh": b"evil"})
    other.close()
    fork = shell.file("fork.bin", other.lookup(USER, 2))
    assert shell("verify", fork).exit == 8
    assert shell("verify", fork, E2EKS_HOME=str(shell.home / "elsewhere")).exit == 2
    fresh = {"E2EKS_HOME": str(shell.home / "elsewhere")}
    assert shell("verify", fork, "--realm-file", str(shell.realm_file), **fresh).exit == 0
    assert shell("verify", absent, "--realm-file", str(shell.realm_file), **fresh).exit == 8


@pytest.mark.parametrize(
    ("text", "time_ms"),
    [
        ("1700000000123", 1700000000123),
        ("1970-01-01T00:00:01Z", 1000),
        ("1970-01-01T01:00:00.5+01:00", 500),
        ("1970-01-01T00:00:00", None),
        ("now", None),
        ("", None),
        ("-5", None),
    ],
)
def test_a_time_is_unix_milliseconds_or_rfc_3339(text: str, time_ms: int | None) -> None:
    if time_ms is not None:
        assert parse_time(text) == time_ms
        return
    with pytest.raises(click.UsageError):
        parse_time(text)


# Flags and settings


def test_flags_stand_before_or_after_the_command_and_the_last_one_wins(shell: Shell) -> None:
    assert shell("-o", "json", "lookup", OTHER).json["schema"] == "e2eks.lookup/1"
    assert shell("-o", "json", "lookup", OTHER, "-o", "table").stdout.startswith("age ")
    assert shell("lookup", OTHER, E2EKS_OUTPUT="jsonl").stdout.startswith("{")
    assert shell("-o", "table", "lookup", OTHER, E2EKS_OUTPUT="json").stdout.startswith("age ")


def test_the_settings_file_comes_after_flags_and_environment(shell: Shell) -> None:
    settings = shell.file("own.toml", b'output = "json"\ntimeout = "5s"\n')
    assert shell("lookup", OTHER, "-c", settings).stdout.startswith("{")
    assert shell("lookup", OTHER, "-c", settings, "-o", "table").stdout.startswith("age ")
    assert shell("lookup", OTHER, E2EKS_CONFIG=settings).stdout.startswith("{")
    for bad in (b'output = "xml"', b'colour = "red"', b'timeout = "soon"', b"="):
        run = shell("lookup", OTHER, "-c", shell.file("bad.toml", bad))
        assert run.exit == 2


def test_colour_is_for_terminals_only(shell: Shell) -> None:
    assert "\x1b" not in shell("lookup", OTHER).stderr
    shell.terminal = True
    assert "\x1b[32m✓" in shell("lookup", OTHER).stderr
    assert "\x1b" not in shell("lookup", OTHER, NO_COLOR="1").stderr


@pytest.mark.parametrize(
    ("text", "seconds"), [("10", 10), ("1.5s", 1.5), ("500ms", 0.5), ("2m", 120), ("1h", 3600)]
)
def test_a_timeout_has_a_unit(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "0", "-1s", "1 day", "nan", "inf", "1y"])
def test_a_timeout_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(click.UsageError):
        seconds_of(text)


def test_every_command_is_listed_and_explains_itself(shell: Shell) -> None:
    assert list(load_commands()) == list(COMMANDS)
    for name in COMMANDS:
        assert shell(name, "--help").exit == 0
    listed = shell("--help").stdout
    assert all(f"  {name} " in listed and words in listed for name, words in COMMANDS.items())


# ssh-authorized-keys


def test_sshd_gets_keys_or_nothing(shell: Shell) -> None:
    run = shell("ssh-authorized-keys", OTHER)
    assert (run.exit, run.stdout, run.stderr) == (0, "ssh-ed25519 AAAA bob\n", "")
    absent = shell("ssh-authorized-keys", NOBODY)
    assert (absent.exit, absent.raw) == (0, b"")
    shell.world.put(USER, {"age": b"age1"})
    shell.world.close()
    without = shell("ssh-authorized-keys", USER)
    assert (without.exit, without.raw) == (0, b"")
    shell.world.tampering["Lookup"] = lambda raw: raw[:-1] + bytes((raw[-1] ^ 1,))
    failed = shell("ssh-authorized-keys", OTHER)
    assert (failed.exit, failed.raw) == (3, b"")


def test_sshd_gets_printable_lines_only() -> None:
    assert list(
        show.authorized_keys(b"# c\n\n ssh-ed25519 A \nssh-rsa \x1b[31m\n\xff\xfe\r\nssh-ed25519 B")
    ) == [
        "ssh-ed25519 A",
        "\ufffd\ufffd",
        "ssh-ed25519 B",
    ]


# Errors in words


def test_every_refusal_and_cause_comes_with_advice() -> None:
    assert {reason.value for reason in Reason} - set(show.ADVICE) == {
        "MALFORMED",
        "TOO_LARGE",
        "UNKNOWN_REALM",
        "WRONG_INDEX",
        "COMMITMENT_MISMATCH",
    }
    for cause in ("quorum", "stale", "future", "rollback"):
        assert "\n" in failure.words(NotRatified(cause, "x"), ())


def test_an_error_says_what_happened_what_was_compared_and_what_to_do() -> None:
    text = failure.words(VerificationError("tree", "the root differs"), [Path("/e.json")])
    assert text.splitlines() == [
        "a proof does not verify: tree: the root differs",
        "  evidence saved: /e.json",
        f"  {show.ADVICE['VerificationError']}",
    ]
    assert failure.document(ValueError("secret"), ())["message"] == failure.words(ValueError("secret"), ())
    assert "secret" not in failure.words(ValueError("secret"), ())
    assert failure.document(VerificationError("x", "y"), ())["exit"] == Exit.NOT_VERIFIED


def test_an_entry_of_the_limits_is_shown(shell: Shell) -> None:
    keys = {f"app-{n}": b"k" * 900 for n in range(64)}
    shell.world.put(USER, keys)
    shell.world.close()
    assert encoding.encode_profile(keys)
    assert len(shell("lookup", USER).stdout.splitlines()) == 64
