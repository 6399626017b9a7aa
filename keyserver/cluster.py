"""The tables [cluster] and [etcd] of a configuration: who the members are, and how they reach each other.

Members are the replicas that run now, by name; whose signatures count is the replicas' policy of the realm,
which only the log changes. Links between members believe one authority, the peers' own, and a certificate
there stands for the name in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from keyserver import peer_certificates
from replication.types import PeerTls

QUOTA_BYTES = 2 * 1024 * 1024 * 1024  # etcd's own default
LOCAL, RAFT, ETCD = "local", "raft", "etcd"
ENGINES = (LOCAL, RAFT, ETCD)
QUORUM_MS = 2_000  # a leader that heard no majority for so long gives up: not before others may miss it
MEMBERS_MAX = 7  # a majority of more waits for ever slower disks; five lose any two


class Timing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a member misses its leader (raft): after a time drawn anew between the two, in milliseconds."""

    election_min_ms: int = 600
    election_max_ms: int = 1_200
    heartbeat_ms: int = 100


class MemberTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """host:port at which the other members reach this one."""

    peers: str
    replication: str = ""  # raft only


class ClusterTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    certificate: str
    key: str
    authority: str
    members: dict[str, MemberTable]
    timing: Timing = Timing()
    ready_without_majority: bool = False


class EtcdTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    endpoints: list[str]
    certificate: str
    key: str
    authority: str
    prefix: str = ""
    quota_bytes: int = QUOTA_BYTES


@dataclass(frozen=True, slots=True)
class Cluster:
    """The members of a replicated realm by name, this one included."""

    members: dict[str, MemberTable]
    tls: PeerTls
    timing: Timing
    ready_without_majority: bool  # /readyz: callers who only read need not go elsewhere

    def others(self, name: str) -> dict[str, str]:
        """Name -> host:port of the peers service, of all members but this."""
        return {member: row.peers for member, row in self.members.items() if member != name}


@dataclass(frozen=True, slots=True)
class Etcd:
    """Where the log lives if etcd keeps it. Endpoints are https URLs."""

    endpoints: tuple[str, ...]
    tls: PeerTls
    prefix: str
    quota_bytes: int  # what etcd's own --quota-backend-bytes says


def cluster_of(table: ClusterTable | None, folder: Path) -> Cluster | None:
    """The table with its paths made whole."""
    if table is None:
        return None
    members = dict(sorted(table.members.items()))
    return Cluster(members, _tls(table, folder), table.timing, table.ready_without_majority)


def etcd_of(table: EtcdTable | None, folder: Path, realm: str) -> Etcd | None:
    """The table with its paths made whole; without a prefix the realm's name keeps realms apart."""
    if table is None:
        return None
    return Etcd(
        tuple(table.endpoints), _tls(table, folder), table.prefix or f"/e2eks/{realm}/", table.quota_bytes
    )


def _tls(table: ClusterTable | EtcdTable, folder: Path) -> PeerTls:
    return PeerTls(folder / table.certificate, folder / table.key, folder / table.authority)


def rules(
    engine: str, own: str, replicas: int, cluster: Cluster | None, etcd: Etcd | None
) -> list[tuple[bool, str]]:
    """What must hold of these settings together, each with its sentence. `replicas`: at the realm's start."""
    clustered = engine in (RAFT, ETCD)
    members = cluster.members if cluster else {}
    return [
        (engine in ENGINES, f"replication is one of {', '.join(ENGINES)}"),
        (
            clustered or replicas == 1,
            'replication "local" serves a realm of one replica; this realm has more',
        ),
        (clustered or cluster is None, 'replication "local" has no table [cluster]: remove it'),
        (not clustered or cluster is not None, f'replication "{engine}" needs the table [cluster]'),
        (engine != ETCD or etcd is not None, 'replication "etcd" needs the table [etcd]'),
        (not clustered or own in members, f"cluster.members has no {own}, which this replica is"),
        (len(members) <= MEMBERS_MAX, f"cluster.members are at most {MEMBERS_MAX}"),
        (
            engine != RAFT or all(row.replication for row in members.values()),
            'each of cluster.members needs its address "replication" with replication "raft"',
        ),
        (_distinct(members), "no two cluster.members share an address"),
        (
            etcd is None or _all_https(etcd.endpoints),
            "etcd.endpoints are https:// addresses, one or more: the log is never sent in the clear",
        ),
        *_timing_rules(cluster.timing if cluster else Timing()),
    ]


def _timing_rules(timing: Timing) -> list[tuple[bool, str]]:
    least, most, beat = timing.election_min_ms, timing.election_max_ms, timing.heartbeat_ms
    often = "cluster.timing.election_min_ms is more than three times heartbeat_ms: a lost message is no fault"
    apart = "cluster.timing.election_max_ms is more than election_min_ms, or members stand up all at once"
    early = f"cluster.timing.election_min_ms is at most {QUORUM_MS}: by then a leader alone has given up"
    return [(0 < 3 * beat < least, often), (least < most, apart), (least <= QUORUM_MS, early)]


def _all_https(endpoints: Sequence[str]) -> bool:
    return bool(endpoints) and all(endpoint.startswith("https://") for endpoint in endpoints)


def _distinct(members: dict[str, MemberTable]) -> bool:
    addresses = [a for row in members.values() for a in (row.peers, row.replication) if a]
    return len(set(addresses)) == len(addresses)


def addresses(cluster: Cluster | None) -> list[tuple[str, str]]:
    """Every address of a member that is given, and the name of its setting."""
    rows = cluster.members.items() if cluster else ()
    both = [(getattr(row, kind), f"{name}.{kind}") for name, row in rows for kind in ("peers", "replication")]
    return [(address, what) for address, what in both if address]


def check_files(own: str, cluster: Cluster | None, etcd: Etcd | None) -> None:
    """That the TLS files of links are there and fit: private keys, and the own name. Raises ConfigError."""
    if cluster is not None:
        peer_certificates.read_peer_files(cluster.tls, own)
    if etcd is not None:
        peer_certificates.read_tls_files(etcd.tls)


def effective(cluster: Cluster | None, etcd: Etcd | None) -> dict[str, Any]:
    """Both tables as they take effect, None for one that is not there."""
    shown: dict[str, Any] = {"cluster": None, "etcd": None}
    if cluster is not None:
        members = {name: msgspec.structs.asdict(row) for name, row in cluster.members.items()}
        timing = msgspec.structs.asdict(cluster.timing)
        ready = {"ready_without_majority": cluster.ready_without_majority}
        shown["cluster"] = {**_paths(cluster.tls), **ready, "members": members, "timing": timing}
    if etcd is not None:
        where = {"endpoints": list(etcd.endpoints), "prefix": etcd.prefix, "quota_bytes": etcd.quota_bytes}
        shown["etcd"] = _paths(etcd.tls) | where
    return shown


def _paths(tls: PeerTls) -> dict[str, str]:
    return {"certificate": str(tls.certificate), "key": str(tls.key), "authority": str(tls.authority)}
