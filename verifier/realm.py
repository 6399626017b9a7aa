"""A realm as its clients, verifiers and replicas know it: identity, user ids, the publishable file and its
fingerprint."""

from __future__ import annotations

import base64
import json

from e2eks.v1 import types_pb2 as pb
from google.protobuf import json_format

from verifier import encoding, limits
from verifier.crypto import hashing, vrf
from verifier.encoding import at_most, exact
from verifier.errors import Malformed, Reason, Refused
from verifier.types import AuthorizationPolicy, Realm, Verifier


def realm_hash(name: str, suite: int, vrf_public_key: bytes, genesis_policy: AuthorizationPolicy) -> bytes:
    """The hash that every head carries and every signature is bound to."""
    return hashing.tagged(
        "e2eks/1/realm",
        name.encode("ascii"),
        suite.to_bytes(4, "big"),
        vrf_public_key,
        genesis_policy.encoded,
    )


def fingerprint(realm: Realm) -> str:
    """What people pin: stable while addresses and TLS roots change."""
    digest = hashing.tagged(
        "e2eks/1/pin",
        realm.hash,
        realm.epoch_ttl_ms.to_bytes(8, "big"),
        realm.verification_policy.encoded,
        *(domain.encode("ascii") for domain in realm.domains),
    )
    return "E2EKS1-" + base64.b32encode(digest).decode("ascii").rstrip("=")


def check_user_id(user_id: str, domains: tuple[str, ...]) -> str:
    """`user_id` if it is canonical and of one of the domains.

    Raises Malformed, or Refused with DOMAIN_NOT_SERVED. The text never repeats the user id.
    """
    if len(user_id) > limits.USER_ID_BYTES:
        raise Malformed(f"a user id is longer than {limits.USER_ID_BYTES} bytes", Reason.TOO_LARGE)
    if not all("!" <= c <= "~" for c in user_id) or '"' in user_id or user_id != user_id.lower():
        raise Malformed("a user id is lower-case printable ASCII without quotes")
    local, at, domain = user_id.partition("@")
    if not (local and at and domain) or "@" in domain:
        raise Malformed("a user id has the form local@domain")
    if domain not in domains:
        raise Refused(Reason.DOMAIN_NOT_SERVED, "this realm does not serve the domain of the user id")
    return user_id


def user_id_alpha(realm: str, user_id: str) -> bytes:
    """The VRF input of a user id."""
    return hashing.tagged("e2eks/1/user-id", realm.encode("ascii"), user_id.encode("ascii"))


def _name(text: str, what: str) -> str:
    if not 1 <= len(text) <= limits.REALM_BYTES or not all("!" <= c <= "~" for c in text):
        raise Malformed(f"{what} is not 1..{limits.REALM_BYTES} printable ASCII characters")
    if text != text.lower():
        raise Malformed(f"{what} is not lower case")
    return text


def _address(text: str, what: str) -> str:
    """Shown to people and given to the network: printable, whatever else it is."""
    if len(text) > limits.REALM_BYTES or not all("!" <= c <= "~" for c in text):
        raise Malformed(f"{what} is not at most {limits.REALM_BYTES} printable ASCII characters")
    return text


def _pem(text: str) -> str:
    """Read as ASCII by every TLS library; what it holds shows when somebody connects."""
    if not text.isascii():
        raise Malformed("a TLS root is not PEM")
    return text


def _verifier_from(message: pb.VerifierInfo) -> Verifier:
    key = exact(message.public_key.ed25519, limits.KEY_BYTES, "a verifier's public key")
    return Verifier(
        name=_name(message.name, "a verifier's name"),
        public_key=key,
        key_id=hashing.key_id(key),
        address=_address(message.address, "a verifier's address"),
    )


def realm_from(message: pb.RealmConfig) -> Realm:
    """A realm whose parts fit together; raises Malformed."""
    if message.suite != limits.SUITE:
        raise Malformed(f"suite {message.suite} is unknown; this version knows suite {limits.SUITE}")
    if message.epoch_ttl_ms == 0:
        raise Malformed("a realm's epoch_ttl_ms is 0")
    name = _name(message.realm, "a realm's name")
    vrf_public_key = exact(message.vrf_public_key, limits.KEY_BYTES, "VRF public key")
    if not vrf.validate_key(vrf_public_key):
        raise Malformed("the VRF public key is not a valid key")
    most = limits.VERIFICATION_POLICY_KEYS
    genesis = encoding.policy_from(message.genesis_policy, most, "genesis policy")
    verification = encoding.policy_from(message.verification_policy, most, "verification policy")
    at_most(len(message.verifiers), limits.VERIFIERS, "verifiers")
    verifiers = tuple(_verifier_from(v) for v in message.verifiers)
    _check_verifiers(verifiers, genesis)
    return Realm(
        name=name,
        domains=tuple(_name(domain, "a domain") for domain in message.domains),
        addresses=tuple(_address(address, "an address") for address in message.addresses),
        vrf_public_key=vrf_public_key,
        verification_policy=verification,
        epoch_ttl_ms=message.epoch_ttl_ms,
        suite=message.suite,
        tls_roots_pem=tuple(_pem(root) for root in message.tls_roots_pem),
        genesis_policy=genesis,
        verifiers=verifiers,
        hash=realm_hash(name, message.suite, vrf_public_key, genesis),
    )


def _check_verifiers(verifiers: tuple[Verifier, ...], genesis: AuthorizationPolicy) -> None:
    names, key_ids = {v.name for v in verifiers}, {v.key_id for v in verifiers}
    if len(names) != len(verifiers) or len(key_ids) != len(verifiers):
        raise Malformed("a verifier is listed twice")
    if any(v.key_id in genesis.keys for v in verifiers):
        raise Malformed("a verifier's key is a replica's key")


def realm_message(realm: Realm) -> pb.RealmConfig:
    """The wire form of a realm."""
    return pb.RealmConfig(
        realm=realm.name,
        domains=realm.domains,
        addresses=realm.addresses,
        vrf_public_key=realm.vrf_public_key,
        verification_policy=encoding.policy_message(realm.verification_policy),
        epoch_ttl_ms=realm.epoch_ttl_ms,
        suite=realm.suite,
        tls_roots_pem=realm.tls_roots_pem,
        genesis_policy=encoding.policy_message(realm.genesis_policy),
        verifiers=[
            pb.VerifierInfo(name=v.name, public_key=pb.PublicKey(ed25519=v.public_key), address=v.address)
            for v in realm.verifiers
        ],
    )


def parse_realm_json(data: bytes) -> Realm:
    """The realm in the bytes of a realm.json; raises Malformed."""
    if len(data) > limits.REALM_JSON_BYTES:
        raise Malformed("a realm.json is too large", Reason.TOO_LARGE)
    try:
        message = json_format.Parse(data, pb.RealmConfig(), max_recursion_depth=32)
    except (json_format.ParseError, UnicodeDecodeError, RecursionError):
        raise Malformed("a realm.json is not the JSON form of RealmConfig") from None
    return realm_from(message)


def realm_json(realm: Realm) -> bytes:
    """The publishable file: proto3 JSON, original field names, keys sorted, two spaces, final newline."""
    tree = json_format.MessageToDict(realm_message(realm), preserving_proto_field_name=True)
    return (json.dumps(tree, indent=2, sort_keys=True) + "\n").encode("ascii")
