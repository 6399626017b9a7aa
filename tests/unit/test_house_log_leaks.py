"""The search for leaks in logs finds what it must, in every form in which bytes are shown, and no more."""

import base64
import json
import random
from pathlib import Path

import pytest
from log_leaks.finding import leaks
from log_leaks.plugin import EVENT, logs, seeds

HARMLESS = (
    '{"time": "2026-01-01T00:00:00.000+00:00", "replica": "r1", "event": "epoch signed", "epoch": 7}',
    '{"event": "started", "public_key": "' + "ab" * 32 + '"}',
    "keyserver: error: the secret head.key has mode 0644",
    "127.0.0.1:4625 [::1]:4626 e2eks.v1.Keyserver/Lookup @ no address",
)


@pytest.mark.parametrize("line", HARMLESS)
def test_what_logs_say_is_no_leak(line: str, rng: random.Random) -> None:
    assert leaks(line, {rng.randbytes(32)}) == []


@pytest.mark.parametrize("user_id", ["alice@example.org", "a.b+c@mail.example.test", "x_y@a-b.example"])
def test_a_user_id_is_found(user_id: str) -> None:
    for line in (user_id, f'{{"event": "x", "who": "{user_id}"}}', f"KeyError: '{user_id}'"):
        assert leaks(line, ()) == ["a user id"]


def test_a_secret_is_found_in_every_form(rng: random.Random) -> None:
    for _ in range(100):
        secret = rng.randbytes(32)
        around = rng.randbytes(rng.randrange(9)), rng.randbytes(rng.randrange(9))
        data = secret.join(around)
        for shown in (
            secret.hex(),
            data.hex(),
            secret.hex().upper(),
            base64.b64encode(secret).decode(),
            base64.b64encode(data).decode(),
            base64.urlsafe_b64encode(secret).decode().rstrip("="),
            repr(secret),
            repr(data),
            json.dumps({"nonce": secret.hex()}),
        ):
            # Random bytes as Python shows them may look like a user id besides.
            assert "a nonce or seed" in leaks(f"nonce={shown}", {secret}), shown


def test_a_private_key_is_found() -> None:
    assert leaks("-----BEGIN EC PRIVATE KEY-----", ()) == ["a private key"]


def test_both_forms_of_events_are_told_from_other_output() -> None:
    assert EVENT.search('{"event": "x"}')
    assert EVENT.search("2026-01-01T00:00:00Z [info     ] x  a=1")
    assert not EVENT.search("a test prints alice@example.org")


def test_logs_of_processes_and_seeds_are_found_and_journals_of_the_database_are_not(tmp_path: Path) -> None:
    for name in ("realm/logs/r1.log", "v/log", "r1/db/000003.log", "r1/db/LOG", "r1/data/log/000007.log"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    (tmp_path / "head.key").write_text("ab" * 32 + "\n")
    (tmp_path / "tls.key").write_text("-----BEGIN")
    assert sorted(str(path.relative_to(tmp_path)) for path in logs(tmp_path)) == [
        "realm/logs/r1.log",
        "v/log",
    ]
    assert list(seeds(tmp_path)) == [bytes([0xAB]) * 32]
