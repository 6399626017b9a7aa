"""Which surfaces there are, how each is set up, and how many cases it has at the least."""

from __future__ import annotations

from collections.abc import Mapping

from attacks.admission import Admission
from attacks.calls import Grpc, WireSurface
from attacks.client import ClientSurface
from attacks.ed25519 import Ed25519
from attacks.http import Http
from attacks.keyfile import Keyfile
from attacks.limits import LimitsSurface
from attacks.log import Log
from attacks.merkle import Merkle
from attacks.name import Name
from attacks.peers import Peers
from attacks.protobuf import Protobuf
from attacks.quorum import Quorum
from attacks.replication import Replication
from attacks.surface import Surface
from attacks.tls import Tls
from attacks.transport import Transport
from attacks.verifier import VerifierSurface
from attacks.vrf import Vrf

IN_PROCESS: Mapping[str, type[Surface]] = {
    "admission": Admission,
    "client": ClientSurface,
    "ed25519": Ed25519,
    "keyfile": Keyfile,
    "limits": LimitsSurface,
    "log": Log,
    "merkle": Merkle,
    "name": Name,
    "peers": Peers,
    "protobuf": Protobuf,
    "quorum": Quorum,
    "replication": Replication,
    "transport": Transport,
    "verifier": VerifierSurface,
    "vrf": Vrf,
}
OVER_THE_WIRE: Mapping[str, type[WireSurface]] = {
    "grpc": Grpc,
    "http": Http,
    "tls": Tls,
}

LEAST: Mapping[str, int] = {
    "admission": 25,
    "client": 50,
    "ed25519": 35,
    "grpc": 75,
    "http": 15,
    "keyfile": 60,
    "limits": 8,
    "log": 50,
    "merkle": 50,
    "name": 20,
    "peers": 20,
    "protobuf": 80,
    "quorum": 45,
    "replication": 40,
    "tls": 35,
    "transport": 10,
    "verifier": 65,
    "vrf": 20,
}
