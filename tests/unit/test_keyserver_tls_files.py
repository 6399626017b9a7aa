"""TLS files are read together, and refused together; what ends soon is said in a sentence."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from operators import certificate_pem, strange_pem

from keyserver.config import Config, load_config
from keyserver.frontends.doors import Doors
from keyserver.installation import certificates, setup
from keyserver.metrics import Metrics
from keyserver.tls_files import DAY_MS, OWN, WARN_DAYS, expiring, read_credentials
from keyserver.verifier_list import VerifierCertificate
from verifier.errors import ConfigError

NOW = datetime(2030, 1, 1, tzinfo=UTC)
NOW_MS = round(NOW.timestamp() * 1000)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    made = setup.init(tmp_path / "realm", setup.Plan("r.test", insecure_skip_registration_proof=True), NOW)
    return load_config(made.configs[0])


def test_the_end_of_the_replicas_certificate_is_known(config: Config) -> None:
    assert read_credentials(config).not_after_ms() == {OWN: NOW_MS + certificates.REPLICA_DAYS * DAY_MS}


def test_a_certificate_for_another_key_is_refused_and_both_files_are_named(config: Config) -> None:
    other = certificates.issue_replica(certificates.make_authority("r.test", NOW), "r1", ["localhost"], NOW)
    config.tls.certificate.write_bytes(other.certificate_pem())
    with pytest.raises(ConfigError, match=r"tls.pem is for another key than .*tls.key. Replace both"):
        read_credentials(config)


@pytest.mark.parametrize(("name", "what"), [("certificate", "is not PEM"), ("key", "not an unencrypted PEM")])
def test_what_is_no_pem_is_refused(config: Config, name: str, what: str) -> None:
    getattr(config.tls, name).write_bytes(b"-----BEGIN NONSENSE-----")
    with pytest.raises(ConfigError, match=what):
        read_credentials(config)


@pytest.mark.parametrize("what", ["version", "kind of key"])
def test_a_certificate_of_a_strange_kind_is_refused(config: Config, what: str) -> None:
    """A replica that is told to renew must live through it."""
    config.tls.certificate.write_text(strange_pem(what))
    with pytest.raises(ConfigError, match=r"tls.pem is not PEM, or of a kind"):
        read_credentials(config)


def test_a_key_that_others_may_read_is_refused(config: Config) -> None:
    config.tls.key.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_credentials(config)


def test_a_missing_list_of_verifiers_is_refused(config: Config) -> None:
    missing = replace(config.tls, verifier_certificates=config.data / "none.json")
    with pytest.raises(ConfigError, match=r"none\.json cannot be read"):
        read_credentials(replace(config, tls=missing))


@pytest.mark.parametrize(
    ("days", "said"),
    [
        (WARN_DAYS, None),
        (WARN_DAYS - 1, "the TLS certificate of v1 ends in 29 days. Renew it, then send SIGHUP"),
        (0, "the TLS certificate of v1 ended 0 days ago. Renew it, then send SIGHUP"),
        (-3, "the TLS certificate of v1 ended 3 days ago. Renew it, then send SIGHUP"),
    ],
)
def test_certificates_that_end_soon_are_named(days: int, said: str | None) -> None:
    far = NOW_MS + 400 * DAY_MS
    assert expiring({"v1": NOW_MS + days * DAY_MS, OWN: far}, NOW_MS) == ([said] if said else [])


async def test_the_end_of_a_certificate_that_is_shown_no_more_is_not_measured(config: Config) -> None:
    """Its alert would go on until the next start."""
    metrics, unused = Metrics(), SimpleNamespace(not_ready=str)
    pusher = VerifierCertificate("v1", bytes(32), bytes(32), certificate_pem("v1"))
    before = replace(read_credentials(config), pushers=(pusher,))
    parts: Any = (unused, unused, metrics, unused, unused)
    doors = Doors(config, before, *parts)
    assert 'holder="v1"' in metrics.text().decode()
    doors.renew(replace(before, pushers=(replace(pusher, name="v2"),)))
    ends = metrics.text().decode()
    assert 'holder="v2"' in ends
    assert 'holder="v1"' not in ends
