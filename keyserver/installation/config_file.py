"""The configuration file that `keyserver init` writes for a replica, with a word on what is what."""

from __future__ import annotations

import json
import os

from keyserver import cluster
from keyserver.config import Listen, Storage
from keyserver.installation.plan import Plan, Replica, address

PEER_CERTIFICATE, PEER_KEY, PEERS_AUTHORITY = "tls/peer.pem", "tls/peer.key", "tls/peers-ca.pem"


def toml(plan: Plan, replica: Replica) -> str:
    """The text of keyserver.toml for one of the plan's replicas."""
    host, ports = plan.listen_host_of(replica), plan.ports_of(replica)
    listen = Listen(
        public=address(host, ports.public),
        verification=address(host, ports.verification),
        push=address(host, ports.push),
        http=address("127.0.0.1", ports.http),
        replication=address(host, ports.replication),
        peers=address(host, ports.peers),
    )
    clustered = plan.replication != cluster.LOCAL
    return _TEMPLATE.format(
        realm=os.path.join("..", "..", "realm.json"),
        replica=replica.name,
        replication=plan.replication,
        listen=listen,
        peers_listen=_PEERS_LISTEN.format(listen=listen) if clustered else "",
        cluster=_cluster_toml(plan) if clustered else "",
        epochs=plan.epochs,
        storage=Storage(),
        registration=_registration_toml(plan),
    )


def _cluster_toml(plan: Plan) -> str:
    return "\n".join([_CLUSTER, *(member_toml(plan, replica) for replica in plan.replicas)])


def member_toml(plan: Plan, replica: Replica) -> str:
    """The table of one member, the same in every replica's file."""
    ports = plan.ports_of(replica)
    return _MEMBER.format(
        name=replica.name,
        replication=address(replica.host, ports.replication),
        peers=address(replica.host, ports.peers),
    )


def _registration_toml(plan: Plan) -> str:
    lines = []
    if plan.insecure_skip_registration_proof:
        lines.append("insecure_skip_registration_proof = true    # anybody may register any free name")
    if plan.registration_ca is not None:
        domains = json.dumps(list(plan.domains or (plan.realm,)))
        lines.append("[[registration.client_certificate]]")
        lines.append(f"domains = {domains}")
        lines.append('ca = "registration-ca.pem"')
    return "\n".join(lines) or _NO_METHOD


_PEERS_LISTEN = """\
replication = "{listen.replication}"                # for other replicas alone, over mutual TLS
peers = "{listen.peers}"
"""

_CLUSTER = """
[cluster]                                     # what replicas show each other: certificates of an authority of
certificate = "tls/peer.pem"                  # their own, which stand for the name in them
key = "tls/peer.key"
authority = "tls/peers-ca.pem"
"""

_MEMBER = """\
[cluster.members.{name}]                        # where the other replicas reach {name}
replication = "{replication}"
peers = "{peers}"
"""

_NO_METHOD = """\
# No method yet: nobody can register. To admit the holders of certificates that name their mail addresses:
# [[registration.client_certificate]]
# domains = ["example.org"]
# ca = "registration-ca.pem\""""

_TEMPLATE = """\
# A replica of an e2eks realm. Paths are relative to this file.
# `keyserver serve -c FILE --check` shows all settings in effect.
schema = 1
realm = "{realm}"
replica = "{replica}"
data = "data"
replication = "{replication}"

[keys]                                        # mode 0600; never in a backup of the data
head = "head.key"
vrf = "vrf.key"
sign_once_register = "sign-once.register"     # without it this replica must not sign again under its key

[listen]                                      # "" turns a listener off
public = "{listen.public}"
verification = "{listen.verification}"
push = "{listen.push}"
http = "{listen.http}"
{peers_listen}
[tls]
certificate = "tls.pem"
key = "tls.key"
verifier_certificates = "verifiers.json"
{cluster}
[epochs]
min_interval_ms = {epochs.min_interval_ms}
max_interval_ms = {epochs.max_interval_ms}
retry_interval_ms = {epochs.retry_interval_ms}

[storage]
min_free_bytes = {storage.min_free_bytes}                   # with less free space this replica only reads
ballast_bytes = {storage.ballast_bytes}                     # kept in reserve, to start on a full disk

[registration]
{registration}
"""
