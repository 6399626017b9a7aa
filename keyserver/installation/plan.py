"""What an operator asks `keyserver init` for: a realm, its replicas and where they listen."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field, fields
from pathlib import Path

from keyserver import cluster
from keyserver.config import Epochs
from verifier.errors import ConfigError

TTL_MS = 300_000
REPLICA_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", re.ASCII)
DNS_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*", re.ASCII)
PORTS_APART = 10  # between replicas of one host
REPLICAS = (1, 3, 5, 7)  # an even number can lose no more of them than the odd one below


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of a replica (contract section 5; pushes and links of peers have ports of their own)."""

    public: int = 4625
    verification: int = 4626
    push: int = 4628
    http: int = 25519
    replication: int = 9807
    peers: int = 4629

    @classmethod
    def from_base(cls, base: int) -> Ports:
        """Consecutive ports, in the contract's order where it has one."""
        return cls(base, base + 1, base + 3, base + 4, base + 5, base + 6)

    def shifted(self, by: int) -> Ports:
        """All of them, so many further on."""
        return Ports(*(getattr(self, port.name) + by for port in fields(self)))


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica to set up: its name, and the DNS name or IP address its clients reach it by.

    `ports` None: the plan's, PORTS_APART further on for each replica before it on the same host.
    """

    name: str
    host: str
    ports: Ports | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to set up. Empty `domains` = the realm's name; empty `listen_host` = by the replica's host.

    `registration_ca` is a PEM file whose certificates prove addresses of all domains.
    """

    realm: str
    replicas: tuple[Replica, ...] = (Replica("r1", "localhost"),)
    domains: tuple[str, ...] = ()
    listen_host: str = ""
    ports: Ports = field(default_factory=Ports)
    epochs: Epochs = field(default_factory=Epochs)
    epoch_ttl_ms: int = TTL_MS
    registration_ca: Path | None = None
    insecure_skip_registration_proof: bool = False

    @property
    def replication(self) -> str:
        """The engine: one replica needs none that agrees with others."""
        return cluster.RAFT if len(self.replicas) > 1 else cluster.LOCAL

    def ports_of(self, replica: Replica) -> Ports:
        """Where one of the replicas listens."""
        before = self.replicas[: self.replicas.index(replica)]
        shared = sum(other.host == replica.host for other in before)
        return replica.ports or self.ports.shifted(PORTS_APART * shared)

    def listen_host_of(self, replica: Replica) -> str:
        """The address a replica listens at: the world's, only if the world is to reach it, and of its host's
        family.
        """
        own, everywhere = ("::1", "::") if ":" in replica.host else ("127.0.0.1", "0.0.0.0")  # noqa: S104 - a server
        return self.listen_host or (own if is_loopback(replica.host) else everywhere)


def check_plan(plan: Plan) -> None:
    """Raises ConfigError for a plan that cannot be carried out."""
    names = [replica.name for replica in plan.replicas]
    if len(names) not in REPLICAS:
        raise ConfigError(
            f"a realm begins with {', '.join(map(str, REPLICAS))} replicas, not {len(names)}: of an even "
            "number no more may fail than of the odd one below it"
        )
    for name in names:
        if not REPLICA_NAME.fullmatch(name):
            raise ConfigError(f"{name!r} is not a replica's name: use a-z, 0-9 and - inside, at most 32")
    if len(set(names)) < len(names):
        raise ConfigError("each replica has a name of its own")
    for host in (*(replica.host for replica in plan.replicas), plan.listen_host or "localhost"):
        if not _is_ip(host) and not DNS_NAME.fullmatch(host):
            raise ConfigError(f"{host!r} is neither a DNS name in lower case nor an IP address")
    addresses = [
        (replica.host, port)
        for replica in plan.replicas
        for port in _all_ports(plan.ports_of(replica))
        if port
    ]
    if len(set(addresses)) < len(addresses) or any(port > 65535 for _, port in addresses):
        raise ConfigError("two listeners would share a port, or ports end beyond 65535. Choose others")


def _all_ports(ports: Ports) -> list[int]:
    return [getattr(ports, port.name) for port in fields(ports)]


def address(host: str, port: int) -> str:
    """host:port, with an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches itself by that host."""
    return ipaddress.ip_address(host).is_loopback if _is_ip(host) else host == "localhost"


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
