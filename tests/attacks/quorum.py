"""Quorums: counted twice, satisfied by nobody, too wide and too deep; heads that the wrong keys signed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from e2eks.v1 import client_pb2
from e2eks.v1 import types_pb2 as pb
from samples import ALICE, BOB, EVE, REALM, REPLICAS, START_MS, VERIFIERS, Key, any_of, make_entry, sign_entry
from samples.directory import Directory

from attacks.surface import Surface
from keyserver import requests
from verifier import encoding, epoch, limits, policy
from verifier.crypto import hashing
from verifier.lookup import Trust, verify_head
from verifier.types import AuthorizationPolicy, QuorumExpr, SignedHead, SignedUpdate
from verifier.update import verify_update

USER = "alice@example.test"
KEYS: dict[str, Key] = {
    "alice": ALICE,
    "bob": BOB,
    "eve": EVE,
    **{f"r{n}": key for n, key in enumerate(REPLICAS)},
    **{f"v{n}": key for n, key in enumerate(VERIFIERS)},
}
TRUST = Trust(REALM, REALM.verification_policy.quorum, REALM.genesis_policy)


def expression(written: dict[str, Any]) -> pb.QuorumExpr:
    """`{ of = 2, keys = ["alice"], quorums = [...] }`; a key is a name or hexadecimal."""
    return pb.QuorumExpr(
        threshold=written["of"],
        candidates=[
            KEYS[name].id if name in KEYS else bytes.fromhex(name) for name in written.get("keys", [])
        ],
        subexpressions=[expression(sub) for sub in written.get("quorums", [])],
    )


class Quorum(Surface):
    # Expressions

    def make_quorum(self, **written: Any) -> bytes:
        return encoding.canonical(expression(written))

    def make_wide(self, candidates: int, threshold: int = 1) -> bytes:
        """So many different keys."""
        ids = [number.to_bytes(32, "big") for number in range(candidates)]
        return encoding.canonical(pb.QuorumExpr(threshold=threshold, candidates=ids))

    def make_bushy(self, quorums: int, keys: int) -> bytes:
        """So many quorums of so many different keys each."""
        ids = iter(range(quorums * keys))
        subs = [
            pb.QuorumExpr(threshold=1, candidates=[next(ids).to_bytes(32, "big") for _ in range(keys)])
            for _ in range(quorums)
        ]
        return encoding.canonical(pb.QuorumExpr(threshold=1, subexpressions=subs))

    def make_deep(self, levels: int) -> bytes:
        message = expression({"of": 1, "keys": ["alice"]})
        for _ in range(levels - 1):
            message = pb.QuorumExpr(threshold=1, subexpressions=[message])
        return encoding.canonical(message)

    def judge_quorum(self, data: bytes) -> str:
        encoding.decode_quorum(data)
        return "decoded"

    def judge_lookup(self, quorum: bytes) -> str:
        """The quorum in a lookup, as a server takes it."""
        request = client_pb2.LookupRequest(user_id=USER, quorum_requirement=pb.QuorumExpr.FromString(quorum))
        return requests.decode_lookup(request.SerializeToString(), REALM).user_id.partition("@")[0]

    # Policies

    def make_policy(self, keys: Sequence[str], quorum: dict[str, Any]) -> bytes:
        listed = [pb.PublicKey(ed25519=KEYS[name].public) for name in keys]
        return encoding.canonical(pb.AuthorizationPolicy(public_keys=listed, quorum=expression(quorum)))

    def make_policy_of_many(self, keys: int) -> bytes:
        """So many keys, of which the first decides."""
        listed = [pb.PublicKey(ed25519=number.to_bytes(32, "big")) for number in range(keys)]
        first = hashing.key_id(bytes(32))
        quorum = pb.QuorumExpr(threshold=1, candidates=[first])
        return encoding.canonical(pb.AuthorizationPolicy(public_keys=listed, quorum=quorum))

    def make_policy_with_key(self, hexadecimal: str) -> bytes:
        """Alice's policy, with one more key in its list."""
        message = encoding.policy_message(any_of(ALICE))
        message.public_keys.add(ed25519=bytes.fromhex(hexadecimal))
        return encoding.canonical(message)

    def judge_policy(self, data: bytes) -> str:
        encoding.decode_policy(data, limits.UPDATE_POLICY_KEYS, "update policy")
        return "decoded"

    # Updates

    def make_update(self, policy: dict[str, Any], signers: Sequence[str]) -> SignedUpdate:
        """A registration under a policy of alice, bob and eve."""
        quorum = encoding.quorum_from(expression(policy))
        law = encoding.make_policy([KEYS[name].public for name in ("alice", "bob", "eve")], quorum)
        return sign_entry(make_entry(USER, update_policy=law), *(KEYS[name] for name in signers))

    def judge_update(self, update: SignedUpdate) -> str:
        return verify_update(None, update, realm_hash=REALM.hash).value

    # Heads: each signature is written as "role:key", role r or v, or "role:key:ms" with an offset in time

    def make_head(self, signatures: Sequence[str]) -> bytes:
        directory = Directory()
        head = directory.close()
        issued = encoding.decode_head(head).issue_time_ms
        message = pb.SignedEpochHead(head=head)
        for written in signatures:
            role, name, *offset = written.split(":")
            at = issued + (int(offset[0]) if offset else 0)
            over = epoch.replica_message(head, at) if role == "r" else epoch.verifier_message(head, at)
            made = KEYS[name].sign(over)
            ratification = message.ratifications.add(timestamp_ms=at)
            ratification.signatures.add(key_id=made.key_id, signature=made.signature)
        return encoding.canonical(message)

    def make_head_with_empty_ratification(self) -> bytes:
        message = pb.SignedEpochHead.FromString(self.make_head(["r:r0", "r:r1", "v:v0", "v:v1"]))
        message.ratifications.add(timestamp_ms=START_MS)
        return encoding.canonical(message)

    def make_head_with_a_false_signature(self) -> bytes:
        """A quorum but for one signature, which is another's under the right key id."""
        message = pb.SignedEpochHead.FromString(self.make_head(["r:r0", "r:r1", "v:v0", "v:v1"]))
        other = message.ratifications[2].signatures[0].signature
        message.ratifications[3].signatures[0].signature = other
        return encoding.canonical(message)

    def judge_head(self, data: bytes) -> str:
        """What a client with the realm's quorum says: majority of replicas and majority of verifiers."""
        head: SignedHead = encoding.decode_signed_head(data)
        verify_head(TRUST, head, now_ms=START_MS + 2000)
        return "ratified"

    def judge_majority(self, data: bytes) -> str:
        """What a verifier says: the replicas' majority."""
        law: AuthorizationPolicy = REALM.genesis_policy
        epoch.check_majority(law, encoding.decode_signed_head(data))
        return "signed"

    # Split views

    def judge_split(self, data: bytes) -> str:
        """Whether two clients with this quorum can be shown two histories unseen."""
        quorum: QuorumExpr = encoding.decode_quorum(data)
        can = policy.can_split(quorum, {key.id for key in REPLICAS})
        return "can be split" if can else "shares a verifier"
