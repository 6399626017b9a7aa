"""Which surfaces there are, how each is set up, and how many cases it has at the least."""

from __future__ import annotations

from collections.abc import Mapping

from attacks.calls import Grpc, WireSurface
from attacks.client import ClientSurface
from attacks.ed25519 import Ed25519
from attacks.http import Http
from attacks.keyfile import Keyfile
from attacks.merkle import Merkle
from attacks.name import Name
from attacks.protobuf import Protobuf
from attacks.quorum import Quorum
from attacks.surface import Surface
from attacks.tls import Tls
from attacks.verifier import VerifierSurface
from attacks.vrf import Vrf

IN_PROCESS: Mapping[str, type[Surface]] = {
    "client": ClientSurface,
    "ed25519": Ed25519,
    "keyfile": Keyfile,
    "merkle": Merkle,
    "name": Name,
    "protobuf": Protobuf,
    "quorum": Quorum,
    "verifier": VerifierSurface,
    "vrf": Vrf,
}
OVER_THE_WIRE: Mapping[str, type[WireSurface]] = {
    "grpc": Grpc,
    "http": Http,
    "tls": Tls,
}

LEAST: Mapping[str, int] = {
    "client": 45,
    "ed25519": 30,
    "grpc": 60,
    "http": 15,
    "keyfile": 40,
    "merkle": 45,
    "name": 20,
    "protobuf": 60,
    "quorum": 40,
    "tls": 30,
    "verifier": 55,
    "vrf": 20,
}
