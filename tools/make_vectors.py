"""Write tests/vectors/e2eks-v1.json: values, mutations and verdicts of suite 1, for any implementation.

Trees, paths and history come from the dumb twins in tests/samples, keys from hashed names; each verdict is
stated here by hand, never asked of the code under test. Usage: python -P tools/make_vectors.py [--check]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests"), str(ROOT / "proto"), str(ROOT)]

import samples  # noqa: E402
from e2eks.v1 import client_pb2  # noqa: E402
from e2eks.v1 import types_pb2 as pb  # noqa: E402
from samples import directory as twin  # noqa: E402
from vectors_replica_sets import replica_sets  # noqa: E402

from verifier import encoding, policy  # noqa: E402
from verifier import epoch as epoch_law  # noqa: E402
from verifier import realm as realms  # noqa: E402
from verifier.crypto import commitment, hashing, vrf  # noqa: E402
from verifier.erasure import erasure_message  # noqa: E402
from verifier.types import QuorumExpr  # noqa: E402
from verifier.update import update_message  # noqa: E402

FILE = ROOT / "tests" / "vectors" / "e2eks-v1.json"
USER, OTHER, ABSENT = "alice@example.test", "bob@example.test", "nobody@example.test"
PROFILE = encoding.encode_profile({"age": b"age1example", "ssh": b"ssh-ed25519 AAAA example"})

Rows = list[dict[str, Any]]


def keys() -> Rows:
    named = [samples.ALICE, samples.BOB, samples.EVE, *samples.REPLICAS, *samples.VERIFIERS]
    return [{"seed": k.seed.hex(), "public_key": k.public.hex(), "key_id": k.id.hex()} for k in named]


def tagged() -> Rows:
    cases = [
        ("e2eks/1/key", []),
        ("e2eks/1/entry", [b""]),
        ("e2eks/1/x", [b"a", b"bc"]),
        ("e2eks/1/x", [b"ab", b"c"]),
    ]
    return [
        {"label": label, "parts": [p.hex() for p in parts], "digest": hashing.tagged(label, *parts).hex()}
        for label, parts in cases
    ]


def realm() -> dict[str, Any]:
    value = samples.REALM
    return {
        "realm_json": json.loads(realms.realm_json(value)),
        "genesis_policy": value.genesis_policy.encoded.hex(),
        "verification_policy": value.verification_policy.encoded.hex(),
        "realm_hash": value.hash.hex(),
        "fingerprint": realms.fingerprint(value),
    }


def mutated(message: Any, **fields: Any) -> bytes:
    changed = type(message)()
    changed.CopyFrom(message)
    for name, value in fields.items():
        setattr(changed, name, value)
    return encoding.canonical(changed)


def entries() -> Rows:
    v0 = samples.make_entry(USER)
    v1 = samples.make_entry(USER, 1, previous=v0, profile=PROFILE)
    revoked = samples.make_revocation(USER, 9)
    good = [
        {"name": name, "encoded": e.encoded.hex(), "verdict": "accepted", "entry_hash": e.hash.hex()}
        for name, e in (("version 0", v0), ("version 1", v1), ("revocation", revoked))
    ]
    message = pb.Entry.FromString(v0.encoded)
    bad = {
        "trailing byte": v0.encoded + b"\x00",
        "unknown field": v0.encoded + b"\xf8\x3f\x01",
        "default-valued version": v0.encoded + b"\x10\x00",
        "short index": mutated(message, index=b"i" * 31),
        "no commitment": mutated(message, profile_commitment=b""),
        "previous hash at version 0": mutated(message, previous_entry_hash=b"p" * 32),
        "revocation with commitment": mutated(message, revocation=True),
        "no update policy": encoding.canonical(
            pb.Entry(index=v0.index, profile_commitment=v0.profile_commitment)
        ),
    }
    return good + [{"name": n, "encoded": data.hex(), "verdict": "MALFORMED"} for n, data in bad.items()]


def updates() -> Rows:
    alice, bob, eve = samples.ALICE, samples.BOB, samples.EVE
    v0 = samples.make_entry(USER)
    v1 = samples.make_entry(USER, 1, previous=v0)
    handed = samples.make_entry(USER, 1, previous=v0, owner=bob)
    revoked = samples.make_revocation(USER, 9)
    again = samples.make_entry(USER, 10, previous=revoked, owner=bob)
    sign = samples.sign_entry
    elsewhere = sign(v1, alice, realm=samples.make_realm(name="other.test"))
    cases = [
        ("registration", None, sign(v0, alice), False, "registration"),
        ("registration not signed", None, sign(v0), False, "NOT_AUTHORIZED"),
        ("registration of version 1", None, sign(v1, alice), False, "VERSION_MISMATCH"),
        ("update", v0, sign(v1, alice), False, "update"),
        ("update by a stranger", v0, sign(v1, eve), False, "NOT_AUTHORIZED"),
        ("update beside an unknown key", v0, sign(v1, alice, eve), False, "NOT_AUTHORIZED"),
        ("update for another realm", v0, elsewhere, False, "NOT_AUTHORIZED"),
        ("new key did not sign", v0, sign(handed, alice), False, "NOT_AUTHORIZED"),
        ("old key did not sign", v0, sign(handed, bob), False, "NOT_AUTHORIZED"),
        ("handed over", v0, sign(handed, alice, bob), False, "update"),
        ("second in an epoch", v0, sign(v1, alice), True, "UPDATE_PENDING"),
        ("same bytes", v0, sign(v0, alice), True, "unchanged"),
        ("replayed", v1, sign(v0, alice), False, "VERSION_MISMATCH"),
        ("revocation", v0, sign(revoked, alice), False, "revocation"),
        ("revocation by a stranger", v0, sign(revoked, eve), False, "NOT_AUTHORIZED"),
        ("revocation of nothing", None, sign(revoked, alice), False, "VERSION_MISMATCH"),
        ("registration after revocation", revoked, sign(again, bob), False, "registration"),
        ("update after revocation", revoked, sign(v1, alice), False, "REVOKED"),
    ]  # fmt: skip
    return [
        {
            "name": name,
            "current": current.encoded.hex() if current else None,
            "update": update.encoded.hex(),
            "message": update_message(samples.REALM.hash, update.entry.encoded).hex(),
            "pending": pending,
            "verdict": verdict,
        }
        for name, current, update, pending, verdict in cases
    ]


def erasures() -> Rows:
    alice, eve, entry = samples.ALICE, samples.EVE, samples.make_entry(USER)
    message = erasure_message(samples.REALM.hash, entry.index, entry.hash)
    other = erasure_message(samples.make_realm(name="other.test").hash, entry.index, entry.hash)
    cases = [
        ("by the owner", [alice.sign(message)], "accepted"),
        ("beside an unknown key", [eve.sign(message), alice.sign(message)], "accepted"),
        ("by a stranger", [eve.sign(message)], "NOT_AUTHORIZED"),
        ("not signed", [], "NOT_AUTHORIZED"),
        ("for another realm", [alice.sign(other)], "NOT_AUTHORIZED"),
        ("an update's signature", list(samples.sign_entry(entry, alice).signatures), "NOT_AUTHORIZED"),
        ("twice by one key", [alice.sign(message)] * 2, "MALFORMED"),
    ]
    return [
        {
            "name": name,
            "current": entry.encoded.hex(),
            "message": message.hex(),
            "signatures": [[made.key_id.hex(), made.signature.hex()] for made in signatures],
            "verdict": verdict,
        }
        for name, signatures, verdict in cases
    ]


def commitments() -> Rows:
    index, _ = samples.index_of(USER)
    return [
        {
            "nonce": samples.nonce_of(USER, version).hex(),
            "index": index.hex(),
            "version": version,
            "profile": profile.hex(),
            "commitment": commitment.commit(samples.nonce_of(USER, version), index, version, profile).hex(),
        }
        for version, profile in ((0, b""), (1, PROFILE))
    ]


def vrf_outputs() -> Rows:
    rows: Rows = []
    for user_id in (USER, OTHER):
        alpha = realms.user_id_alpha(samples.REALM.name, user_id)
        _, proof = samples.index_of(user_id)
        output = vrf.proof_to_hash(proof)
        good = {"user_id": user_id, "alpha": alpha.hex(), "proof": proof.hex()}
        rows.append({**good, "verdict": "accepted", "output": output.hex(), "index": output[:32].hex()})
        for offset in (0, 31, 40, 50, 79):
            flipped = bytearray(proof)
            flipped[offset] ^= 1
            rows.append({**good, "proof": flipped.hex(), "verdict": "refused"})
    return [{"public_key": samples.VRF_KEY.public_key.hex(), **row} for row in rows]


def quorums() -> Rows:
    ids = [k.id for k in (*samples.REPLICAS, *samples.VERIFIERS)]
    both = policy.default_quorum(ids[:3], ids[3:])
    nested = QuorumExpr(2, (ids[0],), (QuorumExpr(1, (ids[1],)), QuorumExpr(2, (ids[2], ids[3]))))
    cases = [
        (both, [0, 1, 3, 4], True), (both, [0, 1, 2, 3], False), (both, [0, 3, 4, 5], False),
        (nested, [0, 1], True), (nested, [0, 2], False), (nested, [1, 2, 3], True), (nested, [], False),
    ]  # fmt: skip
    rows: Rows = [
        {
            "encoded": encoding.encode_quorum(expr).hex(),
            "signers": [ids[n].hex() for n in signers],
            "verdict": "satisfied" if satisfied else "not satisfied",
        }
        for expr, signers, satisfied in cases
    ]
    deep = QuorumExpr(1, tuple(ids[:1]))
    for _ in range(4):
        deep = QuorumExpr(1, (), (deep,))
    bad = [
        (QuorumExpr(0, (ids[0],)), "MALFORMED"), (QuorumExpr(2, (ids[0],)), "MALFORMED"),
        (QuorumExpr(1, (ids[0], ids[0])), "MALFORMED"), (QuorumExpr(1, (b"short",)), "MALFORMED"),
        (deep, "TOO_LARGE"),
    ]  # fmt: skip
    return rows + [{"encoded": encoding.encode_quorum(e).hex(), "signers": [], "verdict": v} for e, v in bad]


def trees() -> Rows:
    near = [bytes([0b10100000]) + bytes(30) + bytes([n]) for n in range(3)]
    far = [bytes([n * 37 % 256]) * 32 for n in range(9)]
    rows = []
    for indices in ([], far[:1], far[:2], far, near, near + far):
        leaves = {index: hashing.sha256(index) for index in indices}
        wanted = [*indices, b"\x55" * 32, b"\xa0" + b"\xff" * 31]
        paths = [(index, *twin.tree_path(leaves, index)) for index in wanted]
        rows.append(
            {
                "leaves": [[i.hex(), h.hex()] for i, h in leaves.items()],
                "root": twin.tree_root(leaves).hex(),
                "paths": [
                    {
                        "index": index.hex(),
                        "neighbors": [n.hex() for n in neighbors],
                        "leaf": [part.hex() for part in leaf] if leaf else None,
                    }
                    for index, neighbors, leaf in paths
                ],
            }
        )
    return rows


def histories() -> dict[str, Any]:
    leaves = [b"head %d" % n for n in range(1, 12)]
    return {
        "leaves": [leaf.hex() for leaf in leaves],
        "roots": [twin.log_root(leaves[:n]).hex() for n in range(len(leaves) + 1)],
        "inclusion": [
            {"index": m, "size": n, "path": [h.hex() for h in twin.log_path(m, leaves[:n])]}
            for n in range(1, 12)
            for m in range(n)
        ],
        "consistency": [
            {"old": m, "new": n, "path": [h.hex() for h in twin.log_consistency(m, leaves[:n])]}
            for n in range(1, 12)
            for m in range(1, n + 1)
        ],
    }


def heads(made: twin.Directory) -> Rows:
    rows = []
    for epoch, head in enumerate(made.heads, 1):
        issued = encoding.decode_head(head).issue_time_ms
        rows.append(
            {
                "encoded": head.hex(),
                "head_hash": hashing.head_hash(head).hex(),
                "replica_message": epoch_law.replica_message(head, issued).hex(),
                "verifier_message": epoch_law.verifier_message(head, issued + 1000).hex(),
                "signed": made.signed(epoch).encoded.hex(),
            }
        )
    return rows


def proofs(made: twin.Directory) -> Rows:
    now = samples.START_MS + 5000
    few = made.signed(2, verifiers=samples.VERIFIERS[:1])
    neighbors, _ = twin.tree_path(made.leaves(2), samples.index_of(USER)[0])
    old = made.states[0][USER][0].encoded
    index, index_proof = samples.index_of(OTHER)
    theirs = made.lookup(USER, 2, index=index, index_proof=index_proof)
    two = made.lookup(USER, 2, signed=made.signed(2, verifiers=samples.VERIFIERS[:2]))
    short = made.lookup(USER, 2, neighbors=neighbors[:-1])
    hidden = made.lookup(USER, 2, entry=b"", profile=b"", profile_nonce=b"")
    earlier = made.lookup(USER, 2, entry=old, profile=b"", profile_nonce=b"")
    cases: list[tuple[str, str, bytes, int, int, str]] = [
        ("present", USER, made.lookup(USER, 2), now, 0, "present"),
        ("absent", ABSENT, made.lookup(ABSENT, 2), now, 0, "absent"),
        ("historic", USER, made.lookup(USER, 1), now + 10**9, 1, "present"),
        ("erased", USER, made.lookup(USER, 2, profile=b"", profile_nonce=b""), now, 0, "erased"),
        ("revoked", OTHER, made.lookup(OTHER, 3), now, 0, "revoked"),
        ("for another user", OTHER, made.lookup(USER, 2), now, 0, "user-id"),
        ("another user's index", USER, theirs, now, 0, "vrf"),
        ("without its last neighbour", USER, short, now, 0, "tree"),
        ("hidden", USER, hidden, now, 0, "tree"),
        ("old entry", USER, earlier, now, 0, "tree"),
        ("another nonce", USER, made.lookup(USER, 2, profile_nonce=b"n" * 32), now, 0, "commitment"),
        ("one verifier of three", USER, made.lookup(USER, 2, signed=few), now, 0, "not ratified: quorum"),
        ("stale", USER, made.lookup(USER, 2), now + samples.TTL_MS, 0, "not ratified: stale"),
        ("from the future", USER, made.lookup(USER, 2), now - 100_000, 0, "not ratified: future"),
        ("another epoch than asked", USER, made.lookup(USER, 2), now, 1, "head"),
        ("trailing byte", USER, made.lookup(USER, 2) + b"\x00", now, 0, "MALFORMED"),
        ("zero neighbour", USER, made.lookup(USER, 2, neighbors=(bytes(32),)), now, 0, "MALFORMED"),
        ("failed signature", USER, failed_signature(two), now, 0, "signature"),
        ("failed signature to spare", USER, failed_signature(made.lookup(USER, 2)), now, 0, "present"),
    ]  # fmt: skip
    return [
        {
            "name": name,
            "user_id": user_id,
            "proof": proof.hex(),
            "now_ms": at,
            "epoch": epoch,
            "verdict": verdict,
        }
        for name, user_id, proof, at, epoch, verdict in cases
    ]


def failed_signature(proof: bytes) -> bytes:
    message = client_pb2.LookupProof.FromString(proof)
    message.head.ratifications[-1].signatures[0].signature = bytes(64)
    return encoding.canonical(message)


def consistencies() -> Rows:
    made = twin.Directory()
    fork = twin.Directory()
    for epoch in range(1, 8):
        made.put(f"user{epoch}@example.test")
        fork.put(f"user{epoch if epoch < 5 else -epoch}@example.test")
        made.close()
        fork.close()
    pairs = [(1, 1), (1, 2), (1, 7), (2, 3), (3, 7), (4, 6), (6, 7), (7, 7)]
    rows = [(made, made, old, new, "accepted") for old, new in pairs]
    rows += [(made, fork, old, new, "conflict") for old, new in ((5, 5), (5, 6), (5, 7), (6, 7))]
    rows += [(made, fork, 4, 7, "accepted")]  # what follows an honest head may differ: the pin decides later
    return [
        {"held": a.signed(old).encoded.hex(), "proof": b.consistency(old, new).hex(), "verdict": verdict}
        for a, b, old, new, verdict in rows
    ]


def build() -> str:
    made = twin.Directory()
    for n in range(7):
        made.put(f"user{n}@example.test")
    made.put(USER)
    made.put(OTHER, owner=samples.BOB)
    made.close()
    made.put(USER, PROFILE)
    made.close()
    made.entries[OTHER] = (samples.make_revocation(OTHER, 9), b"")
    made.close()
    vectors = {
        "schema": "e2eks.vectors/1",
        "about": "Bytes are hexadecimal; made by tools/make_vectors.py; verdicts: tests/vectors/README.md",
        "keys": keys(),
        "tagged": tagged(),
        "realm": realm(),
        "entries": entries(),
        "updates": updates(),
        "erasures": erasures(),
        "replica_sets": replica_sets(),
        "commitments": commitments(),
        "vrf": vrf_outputs(),
        "quorum": quorums(),
        "tree": trees(),
        "history": histories(),
        "heads": heads(made),
        "proofs": proofs(made),
        "consistency": consistencies(),
    }
    return json.dumps(vectors, indent=1) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="compare with the committed file instead of writing it"
    )
    text = build()
    if parser.parse_args().check:
        return 0 if FILE.read_text() == text else 1
    FILE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
