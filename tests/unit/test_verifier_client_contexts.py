"""The contexts, places and settings of a client."""

import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest
from samples import EVE, REALM, REPLICAS, VERIFIERS
from simulated_realm import SimulatedRealm, one_of_each
from simulated_realm.asking import USER, three_epochs_of_alice

from verifier import policy
from verifier import realm as realms
from verifier.client.contexts import Context, Contexts, read_quorum, read_realm
from verifier.client.identity import Identities
from verifier.client.outcome import Exit, exit_of_error
from verifier.client.places import Places, read_settings
from verifier.errors import ConfigError


@pytest.fixture
def world() -> SimulatedRealm:
    return three_epochs_of_alice()


# Contexts


def context_of(**changes: object) -> Context:
    return Context("example.test", replace(REALM, **changes), None)  # type: ignore[arg-type]


def add(contexts: Contexts, context: Context, fingerprint: str | None = None, allow: bool = False) -> None:
    contexts.add(context, fingerprint=fingerprint, allow_split_view=allow)


def test_the_only_context_is_the_current_one_until_one_is_chosen(tmp_path: Path) -> None:
    contexts = Contexts(tmp_path)
    with pytest.raises(ConfigError, match="context add"):
        contexts.load_current(None)
    add(contexts, context_of())
    assert contexts.load_current(None).realm == REALM
    add(contexts, replace(context_of(), name="second"))
    with pytest.raises(ConfigError, match="context use"):
        contexts.load_current(None)
    contexts.use("second")
    assert contexts.load_current(None).name == "second"
    assert contexts.load_current("example.test").name == "example.test"
    with pytest.raises(ConfigError):
        contexts.use("third")


def test_a_fingerprint_is_compared_before_a_realm_is_stored(tmp_path: Path) -> None:
    contexts = Contexts(tmp_path)
    with pytest.raises(ConfigError):
        add(contexts, context_of(), "E2EKS1-OTHER")
    assert contexts.names() == []
    add(contexts, context_of(), realms.fingerprint(REALM))
    assert contexts.names() == ["example.test"]


def test_addresses_may_change_but_what_is_pinned_only_with_its_fingerprint(tmp_path: Path) -> None:
    contexts = Contexts(tmp_path)
    add(contexts, context_of())
    add(contexts, context_of(addresses=("elsewhere.test:1",)))
    assert contexts.load("example.test").realm.addresses == ("elsewhere.test:1",)
    changed = context_of(epoch_ttl_ms=1)
    with pytest.raises(ConfigError, match="fingerprint"):
        add(contexts, changed)
    add(contexts, changed, realms.fingerprint(changed.realm))


def test_a_quorum_that_can_show_two_views_must_be_wanted(tmp_path: Path) -> None:
    contexts = Contexts(tmp_path)
    split = replace(context_of(), quorum=one_of_each())
    assert policy.can_split(one_of_each(), REALM.genesis_policy.keys.keys())
    with pytest.raises(ConfigError, match="allow-split-view"):
        add(contexts, split)
    add(contexts, split, allow=True)
    assert contexts.load("example.test").quorum == one_of_each()
    with pytest.raises(ConfigError, match="allow-split-view"):
        add(contexts, context_of())


def test_a_users_own_quorum_outlives_a_new_realm_file(tmp_path: Path) -> None:
    contexts, both = Contexts(tmp_path), REALM.verification_policy.quorum
    own = replace(context_of(), quorum=both)
    assert contexts.add(context_of(), fingerprint=None, allow_split_view=False).quorum is None
    add(contexts, own)
    renewed = context_of(addresses=("elsewhere.test:1",))
    kept = contexts.add(renewed, fingerprint=None, allow_split_view=False)
    assert kept == contexts.load("example.test") == replace(renewed, quorum=both)


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "Capital", "a" * 65])
def test_a_context_has_a_plain_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError):
        add(Contexts(tmp_path), replace(context_of(), name=name))


def test_a_realm_file_that_is_none_is_a_matter_of_settings(tmp_path: Path) -> None:
    path = tmp_path / "realm.json"
    with pytest.raises(ConfigError):
        read_realm(path)
    for damage in (b"", b"{}", b"[1]", b"\xff", realms.realm_json(REALM)[:-9]):
        path.write_bytes(damage)
        with pytest.raises(ConfigError) as refused:
            read_realm(path)
        assert exit_of_error(refused.value) is Exit.USAGE
    path.write_bytes(realms.realm_json(REALM))
    assert read_realm(path) == REALM


def test_a_quorum_file_is_the_json_form_of_a_quorum(tmp_path: Path) -> None:
    path = tmp_path / "quorum.json"
    ids = [base64.b64encode(key.id).decode() for key in (*REPLICAS, *VERIFIERS)]
    path.write_text(json.dumps({"threshold": 4, "candidates": ids}))
    assert read_quorum(path).threshold == 4
    for damage in ("{}", "[]", '{"threshold": 9}', '{"threshold": 1, "candidates": ["AAAA"]}', "{"):
        path.write_text(damage)
        with pytest.raises(ConfigError):
            read_quorum(path)
    with pytest.raises(ConfigError):
        read_quorum(tmp_path / "none")


# Places and settings


def test_files_lie_in_the_xdg_folders_or_below_one_home(tmp_path: Path) -> None:
    places = Places.from_environment({"HOME": "/h", "XDG_STATE_HOME": "/s", "XDG_DATA_HOME": "relative"})
    assert str(places.contexts) == "/h/.config/e2eks/contexts"
    assert str(places.identities) == "/h/.local/share/e2eks/identities"
    assert str(places.pins) == "/s/e2eks/pins"
    own = Places.from_environment({"HOME": "/h", "E2EKS_HOME": str(tmp_path)})
    assert {own.config, own.data, own.state} == {tmp_path}


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    with pytest.raises(ConfigError, match="E2EKS_HOME"):
        Places.from_environment({})


def test_settings_are_strict(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    assert read_settings(path, required=False) == {}
    with pytest.raises(ConfigError):
        read_settings(path, required=True)
    path.write_text('context = "a"\ntimeout = "3s"\n')
    assert read_settings(path, required=True) == {"context": "a", "timeout": "3s"}
    for damage in ('contxt = "a"', "timeout = 3", "=", "\xff"):
        path.write_bytes(damage.encode("latin-1"))
        with pytest.raises(ConfigError):
            read_settings(path, required=True)


def test_an_identity_of_somebody_else_is_not_taken(tmp_path: Path) -> None:
    identities = Identities(tmp_path)
    identities.make("eve@example.test", lambda _: EVE.seed)
    identities.path("eve@example.test").rename(identities.path(USER))
    with pytest.raises(ConfigError):
        identities.find(USER)
