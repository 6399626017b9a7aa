"""Three replicas: a registration is endorsed by two that verified it, heads are compared beside the log, and
the peers' port lets in nobody but the other members.
"""

import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import grpc
import pytest
from e2eks.v1 import peers_pb2
from realm_processes.calls import reply_of
from realm_processes.people import Authority, connect, new_person, register
from realm_processes.realm import RealmProcesses

from keyserver.demo.processes import wait_until
from keyserver.demo.stage import HOST
from keyserver.installation.certificates import Certified, issue_peer, load_authority, make_peers_authority
from keyserver.signer import composed_message
from verifier import encoding
from verifier.crypto import hashing
from verifier.crypto.signatures import SigningKey
from verifier.epoch import compose_head, genesis_chain, replica_message
from verifier.errors import Refused
from verifier.files import read_secret

THREE = ("r1", "r2", "r3")
PEERS = "/e2eks.v1.Peers/"
DEADLINE_S = 60.0


class AdmittingRealm(RealmProcesses):
    """Registrations need a certificate of this authority."""

    authority = Authority()


@pytest.fixture(scope="module")
def realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealmProcesses]:
    made = AdmittingRealm(tmp_path_factory.mktemp("cluster") / "realm", ("v1",), THREE)
    try:
        made.open()
        yield made
    finally:
        made.close()


def authority_of(realm: RealmProcesses) -> Certified:
    ca = realm.folder / "ca"
    return load_authority((ca / "peers-ca.pem").read_bytes(), (ca / "peers-ca.key").read_bytes())


def ask(
    realm: RealmProcesses, shown: Certified | None, method: str, request: bytes = b""
) -> tuple[str, bytes]:
    """How a call at the first replica's peers' port ends: status or reason, and the answer."""
    roots = authority_of(realm).certificate_pem()
    pair = (shown.key_pem(), shown.certificate_pem()) if shown else (None, None)
    options = [("grpc.ssl_target_name_override", "r1"), ("grpc.use_local_subchannel_pool", 1)]
    address = f"{HOST}:{realm.ports_of['r1'].peers}"
    credentials = grpc.ssl_channel_credentials(roots, *pair)
    with grpc.secure_channel(address, credentials, options) as channel:
        rpc: Any = channel.unary_unary(PEERS + method)
        try:
            return "OK", rpc(request, timeout=DEADLINE_S)
        except grpc.RpcError as error:
            reply = reply_of(error)
            return reply.reason or reply.code, b""


def member(realm: RealmProcesses, name: str) -> Certified:
    return issue_peer(authority_of(realm), name, datetime.now(UTC))


@pytest.mark.slow
def test_the_peers_port_answers_other_members_alone(realm: RealmProcesses) -> None:
    strangers = {
        "nothing": None,
        "another authority": issue_peer(
            make_peers_authority("x", datetime.now(UTC)), "r2", datetime.now(UTC)
        ),
    }
    for who, shown in strangers.items():
        assert ask(realm, shown, "Status")[0] == "UNAVAILABLE", who
    for name in ("r9", "r1"):  # no member, and this replica's own name
        for method in ("Status", "Endorse", "ShowHead"):
            assert ask(realm, member(realm, name), method)[0] == "NOT_AUTHORIZED"
    code, answer = ask(realm, member(realm, "r2"), "Status")
    assert code == "OK"
    assert peers_pb2.PeerStatus.FromString(answer).epoch >= 1
    for method, garbage in (
        ("Endorse", b"\xff" * 99),
        ("ShowHead", b"\xff" * 99),
        ("ShowHead", bytes(20_000)),
    ):
        assert ask(realm, member(realm, "r2"), method, garbage)[0] in ("MALFORMED", "TOO_LARGE")


@pytest.mark.slow
def test_a_registration_is_verified_by_others_too_and_one_of_them_may_be_gone(realm: RealmProcesses) -> None:
    client, transport = connect(realm.realm())
    try:
        register(client, new_person(realm.realm(), AdmittingRealm.authority))
        realm.kill("r3")
        realm.wait_leader()  # it may have been r3: until the others have elected one, they take no updates
        register(client, new_person(realm.realm(), AdmittingRealm.authority))
        with pytest.raises(Refused):
            register(client, new_person(realm.realm(), Authority()))
    finally:
        transport.close()
        realm.spawn_replica("r3")
        realm.wait_ready("r3")


@pytest.mark.slow
def test_certificates_of_links_are_renewed_without_a_restart(realm: RealmProcesses) -> None:
    """From an authority of their own, one replica after the other: those not yet told believe both."""
    now, old = datetime.now(UTC), authority_of(realm)
    new = make_peers_authority("renewed", now)
    ends = realm.standing("r1")["certificates"]["links to peers"]["not_after_ms"]
    for number, step in enumerate(("believe both", "show the new"), 1):
        for name in THREE:
            tls = realm.folder_of(name) / "tls"
            (tls / "peers-ca.pem").write_bytes(new.certificate_pem() + old.certificate_pem())
            if step == "show the new":
                shown = issue_peer(new, name, now)
                (tls / "peer.pem").write_bytes(shown.certificate_pem())
                (tls / "peer.key").write_bytes(shown.key_pem())
            realm.processes.running[name].send_signal(signal.SIGHUP)
        for name in THREE:  # which read the files some time after the signal
            wait_until(partial(is_renewed, realm, name, number), f"{name} to {step}")
            assert "not renewed" not in realm.log_of(name)
        wait_until(lambda: all(linked(realm, name) for name in THREE), step)
    (realm.folder / "ca" / "peers-ca.pem").write_bytes(new.certificate_pem())
    (realm.folder / "ca" / "peers-ca.key").write_bytes(new.key_pem())
    wait_until(
        lambda: realm.standing("r1")["certificates"]["links to peers"]["not_after_ms"] != ends,
        "the new are shown",
    )
    client, transport = connect(realm.realm())
    try:
        register(client, new_person(realm.realm(), AdmittingRealm.authority))
    finally:
        transport.close()


def is_renewed(realm: RealmProcesses, name: str, times: int) -> bool:
    return realm.log_of(name).count("renewed") >= times


def linked(realm: RealmProcesses, name: str) -> bool:
    said = realm.standing(name)
    peers, members = said.get("peers", []), said.get("members", [])
    return bool(peers) and all(row["reached"] for row in peers) and all(row["connected"] for row in members)


@pytest.mark.slow
def test_another_head_is_kept_and_stops_nobody_if_the_others_agree(
    realm: RealmProcesses,
) -> None:
    """The head key of r2 signs another head of an epoch and shows it to r1."""
    epoch = realm.standing("r1")["signed_epoch"]
    key = SigningKey(read_secret(realm.folder_of("r2") / "head.key"))
    head = compose_head(
        realm.realm(),
        replace(genesis_chain(realm.realm()), epoch=epoch - 1),
        root_hash=bytes(32),
        issue_time_ms=1,
        history_root=bytes(32),
        state_digest=bytes(32),
    )
    parsed = encoding.decode_head(head)
    shown = peers_pb2.ShownHead(
        head=head,
        key_id=hashing.key_id(key.public_key),
        composed=key.sign(composed_message(realm.realm().hash, epoch, parsed.hash)),
        signature=key.sign(replica_message(head, parsed.issue_time_ms)),
    )
    request = peers_pb2.ShowHeadRequest(shown=shown).SerializeToString()
    code, answer = ask(realm, member(realm, "r2"), "ShowHead", request)
    assert code == "OK"
    told = peers_pb2.ShowHeadResponse.FromString(answer).shown
    assert encoding.decode_head(told.head).epoch == epoch
    assert told.head != head
    (path,) = (realm.folder_of("r1") / "evidence").glob("heads-differ-*.json")
    assert json.loads(path.read_text())["kind"] == "heads-differ"
    wait_until(lambda: realm.standing("r1")["signed_epoch"] > epoch + 1, "r1 goes on")
    wait_until(lambda: realm.standing("r1")["ready"], "r1 is held no more")
    by_name = {peer["name"]: peer for peer in realm.standing("r1")["peers"]}
    assert by_name["r2"]["other_head_of_epoch"] == epoch
    assert by_name["r3"]["other_head_of_epoch"] == 0
