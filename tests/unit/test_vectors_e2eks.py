"""The published vectors against the implementation, read as a second one would: from the file alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from verifier import encoding, erasure, policy, proof_encoding, replica_set
from verifier import epoch as epoch_law
from verifier import realm as realms
from verifier.consistency import verify_consistency
from verifier.crypto import commitment, hashing, signatures, vrf
from verifier.errors import E2eksError, HistoryConflict, NotRatified, Refused, VerificationError
from verifier.lookup import Trust, verify_lookup
from verifier.merkle import history, proof
from verifier.types import Signature
from verifier.update import update_message, verify_update

ROOT = Path(__file__).parents[2]
VECTORS: dict[str, Any] = json.loads((ROOT / "tests/vectors/e2eks-v1.json").read_text())
REALM = realms.parse_realm_json(json.dumps(VECTORS["realm"]["realm_json"]).encode())
TRUST = Trust(realm=REALM, quorum=REALM.verification_policy.quorum, replicas=REALM.genesis_policy)

raw = bytes.fromhex


def rows(part: str) -> list[Any]:
    return [pytest.param(row, id=str(row.get("name", n))) for n, row in enumerate(VECTORS[part])]


def verdict(judge: Callable[[], str]) -> str:
    """The verdict in the words of the file."""
    try:
        return judge()
    except Refused as refusal:
        return refusal.reason.value
    except VerificationError as error:
        return error.check
    except NotRatified as error:
        return f"not ratified: {error.cause}"
    except HistoryConflict:
        return "conflict"


def test_file_is_what_its_generator_makes() -> None:
    made = subprocess.run([sys.executable, "-P", str(ROOT / "tools/make_vectors.py"), "--check"], check=False)
    assert made.returncode == 0


@pytest.mark.parametrize("row", rows("keys"))
def test_keys(row: dict[str, str]) -> None:
    assert signatures.public_key(raw(row["seed"])).hex() == row["public_key"]
    assert hashing.key_id(raw(row["public_key"])).hex() == row["key_id"]


@pytest.mark.parametrize("row", rows("tagged"))
def test_tagged_hashes(row: dict[str, Any]) -> None:
    assert hashing.tagged(row["label"], *map(raw, row["parts"])).hex() == row["digest"]


def test_realm() -> None:
    assert REALM.hash.hex() == VECTORS["realm"]["realm_hash"]
    assert realms.fingerprint(REALM) == VECTORS["realm"]["fingerprint"]
    assert REALM.genesis_policy.encoded.hex() == VECTORS["realm"]["genesis_policy"]
    assert REALM.verification_policy.encoded.hex() == VECTORS["realm"]["verification_policy"]


@pytest.mark.parametrize("row", rows("entries"))
def test_entries(row: dict[str, str]) -> None:
    def judge() -> str:
        assert encoding.decode_entry(raw(row["encoded"])).hash.hex() == row["entry_hash"]
        return "accepted"

    assert verdict(judge) == row["verdict"]


@pytest.mark.parametrize("row", rows("updates"))
def test_updates(row: dict[str, Any]) -> None:
    current = encoding.decode_entry(raw(row["current"])) if row["current"] else None
    update = encoding.decode_update(raw(row["update"]))
    assert update_message(REALM.hash, update.entry.encoded).hex() == row["message"]

    def judge() -> str:
        return verify_update(current, update, realm_hash=REALM.hash, pending=row["pending"]).value

    assert verdict(judge) == row["verdict"]


@pytest.mark.parametrize("row", rows("replica_sets"))
def test_replica_sets(row: dict[str, Any]) -> None:
    present = encoding.decode_policy(raw(row["present"]), 64, "present policy")
    change = replica_set.decode_change(raw(row["change"]))
    assert replica_set.approval_message(REALM.hash, change.encoded).hex() == row["message"]

    def judge() -> str:
        replica_set.check_change(present, change.policy)
        made = [Signature(raw(key), raw(made)) for key, made in row["approvals"]]
        complete = replica_set.approvals(REALM.hash, present, change, made).complete
        return "accepted" if complete else "NOT_AUTHORIZED"

    assert verdict(judge) == row["verdict"]


@pytest.mark.parametrize("row", rows("erasures"))
def test_erasures(row: dict[str, Any]) -> None:
    current = encoding.decode_entry(raw(row["current"]))
    assert current.update_policy is not None
    message = erasure.erasure_message(REALM.hash, current.index, current.hash)
    assert message.hex() == row["message"]

    def judge() -> str:
        made = erasure.check_signatures([Signature(raw(key), raw(made)) for key, made in row["signatures"]])
        assert current.update_policy is not None
        erasure.verify_erasure(current.update_policy, message, made)
        return "accepted"

    assert verdict(judge) == row["verdict"]


@pytest.mark.parametrize("row", rows("commitments"))
def test_commitments(row: dict[str, Any]) -> None:
    made = commitment.commit(raw(row["nonce"]), raw(row["index"]), row["version"], raw(row["profile"]))
    assert made.hex() == row["commitment"]


@pytest.mark.parametrize("row", rows("vrf"))
def test_vrf(row: dict[str, str]) -> None:
    assert realms.user_id_alpha(REALM.name, row["user_id"]).hex() == row["alpha"]
    output = vrf.verify(raw(row["public_key"]), raw(row["alpha"]), raw(row["proof"]))
    if row["verdict"] == "accepted":
        assert output is not None
        assert output.hex() == row["output"]
        assert vrf.index(output).hex() == row["index"]
    else:
        assert output is None


@pytest.mark.parametrize("row", rows("quorum"))
def test_quorums(row: dict[str, Any]) -> None:
    def judge() -> str:
        expr = encoding.decode_quorum(raw(row["encoded"]))
        return "satisfied" if policy.satisfied(expr, set(map(raw, row["signers"]))) else "not satisfied"

    assert verdict(judge) == row["verdict"]


@pytest.mark.parametrize("row", rows("tree"))
def test_tree_paths_lead_to_the_root(row: dict[str, Any]) -> None:
    for path in row["paths"]:
        leaf = (raw(path["leaf"][0]), raw(path["leaf"][1])) if path["leaf"] else None
        root = proof.root_from_path(raw(path["index"]), leaf, [raw(n) for n in path["neighbors"]])
        assert root.hex() == row["root"]


def test_history() -> None:
    log = VECTORS["history"]
    leaves, roots = [raw(leaf) for leaf in log["leaves"]], [raw(root) for root in log["roots"]]
    assert roots[0] == history.EMPTY_ROOT
    for row in log["inclusion"]:
        m, n, path = row["index"], row["size"], [raw(h) for h in row["path"]]
        assert history.verify_inclusion(leaves[m], m, n, path, roots[n])
        assert not history.verify_inclusion(b"other", m, n, path, roots[n])
    for row in log["consistency"]:
        m, n, path = row["old"], row["new"], [raw(h) for h in row["path"]]
        assert history.verify_consistency(m, n, roots[m], roots[n], path)
        assert not history.verify_consistency(m, n, bytes(32), roots[n], path)


@pytest.mark.parametrize("row", rows("heads"))
def test_heads(row: dict[str, str]) -> None:
    head = encoding.decode_head(raw(row["encoded"]))
    assert head.hash.hex() == row["head_hash"]
    assert epoch_law.replica_message(head.encoded, head.issue_time_ms).hex() == row["replica_message"]
    assert (
        epoch_law.verifier_message(head.encoded, head.issue_time_ms + 1000).hex() == row["verifier_message"]
    )
    epoch_law.check_majority(REALM.genesis_policy, encoding.decode_signed_head(raw(row["signed"])))


@pytest.mark.parametrize("row", rows("proofs"))
def test_proofs(row: dict[str, Any]) -> None:
    def judge() -> str:
        result = verify_lookup(
            TRUST, row["user_id"], raw(row["proof"]), now_ms=row["now_ms"], epoch=row["epoch"]
        )
        return type(result).__name__.lower()

    assert verdict(judge) == row["verdict"]


@pytest.mark.parametrize("row", rows("proofs"))
def test_every_flipped_bit_of_the_first_bytes_of_each_field_is_refused_or_changes_nothing(
    row: dict[str, Any],
) -> None:
    data = raw(row["proof"])
    for offset in range(0, len(data), 97):
        flipped = bytearray(data)
        flipped[offset] ^= 1
        try:
            changed = verify_lookup(
                TRUST, row["user_id"], bytes(flipped), now_ms=row["now_ms"], epoch=row["epoch"]
            )
        except E2eksError:
            continue
        assert type(changed).__name__.lower() == row["verdict"]


@pytest.mark.parametrize("row", rows("consistency"))
def test_consistency(row: dict[str, str]) -> None:
    held = encoding.decode_signed_head(raw(row["held"]))

    def judge() -> str:
        verify_consistency(TRUST, held, proof_encoding.decode_consistency_proof(raw(row["proof"])))
        return "accepted"

    assert verdict(judge) == row["verdict"]
