"""A verifier that was copied or put back from an image: what the keyserver has stored by its key stops it
before it signs a second time.
"""

import dataclasses
import shutil
from pathlib import Path

import pytest
from e2eks.v1 import types_pb2 as pb
from e2eks.v1 import verification_pb2
from msgspec.structs import replace
from streams.build import START_MS, Stream
from streams.folder import OpenVerifier, VerifierFolder, ratify, replay

from verifier import encoding
from verifier.daemon.evidence import Evidence, Kind, Standing, Verdict, from_document, judge, to_document
from verifier.daemon.failures import Misbehaved
from verifier.errors import Malformed
from verifier.types import Realm, Verifier


@pytest.fixture
def stream() -> Stream:
    return Stream().grow(3)


@pytest.fixture
def folder(stream: Stream, tmp_path: Path) -> VerifierFolder:
    return VerifierFolder.make(tmp_path / "v", stream.realm)


def listing(stream: Stream, folder: VerifierFolder) -> Realm:
    """The realm once it lists the verifier of the folder."""
    return dataclasses.replace(
        stream.realm, verifiers=(Verifier(folder.name, folder.public_key, folder.key_id, ""),)
    )


def judged(realm: Realm, evidence: Evidence) -> Verdict:
    return judge(realm, from_document(to_document(realm, evidence, 1)))


def answer(signed_head: bytes = b"") -> bytes:
    message = verification_pb2.PushRatificationResponse()
    if signed_head:
        message.newest.ParseFromString(signed_head)
    return message.SerializeToString(deterministic=True)


def test_own_ratifications_are_known(folder: VerifierFolder, stream: Stream) -> None:
    with OpenVerifier(folder) as opened:
        assert opened.outbox.newest_made() is None
        opened.outbox.check_standing(answer())
        replay(opened, stream.message())
        second = ratify(opened, 2)
        assert opened.outbox.newest_made() == second
        opened.outbox.check_standing(answer(second))


def test_a_restored_verifier_is_told_what_it_forgot(folder: VerifierFolder, stream: Stream) -> None:
    with OpenVerifier(folder) as opened:
        replay(opened, stream.message())
        ratify(opened, 1)
    shutil.copytree(folder.path, folder.path.with_name("image"))
    with OpenVerifier(folder) as opened:
        newest = ratify(opened, 3)
    restored = VerifierFolder(folder.path.with_name("image"), folder.name, folder.info)
    with OpenVerifier(restored) as opened:
        before = opened.register.newest()
        with pytest.raises(Misbehaved) as found:
            opened.outbox.check_standing(answer(newest))
        assert found.value.evidence.kind is Kind.OWN_KEY
        assert found.value.evidence.heads == (newest,)
        assert found.value.exit_code == 2
        assert "verifier rekey" in str(found.value)
        assert opened.register.newest() == before


def test_a_second_time_for_the_same_head_is_a_second_signature(
    folder: VerifierFolder, stream: Stream
) -> None:
    shutil.copytree(folder.path, folder.path.with_name("clone"))
    clone = VerifierFolder(folder.path.with_name("clone"), folder.name, folder.info)
    with OpenVerifier(folder) as opened:
        replay(opened, stream.message())
        first = ratify(opened, 3)
    with OpenVerifier(clone, now_ms=START_MS + 11_000) as opened:
        replay(opened, stream.message())
        second = ratify(opened, 3)
        assert first != second
        with pytest.raises(Misbehaved) as found:
            opened.outbox.check_standing(answer(first))
        assert found.value.evidence.heads == (first, second)
    listed = listing(stream, folder)
    verdict = judged(listed, found.value.evidence)
    assert (verdict.standing, verdict.culprits) == (Standing.PROVEN, (folder.key_id,))
    assert judged(stream.realm, found.value.evidence).standing is Standing.TESTIMONY, "a stranger's key"
    for heads in ((first,), ()):
        assert judged(listed, replace(found.value.evidence, heads=heads)).standing is Standing.TESTIMONY
    assert judged(listed, replace(found.value.evidence, heads=(first, first))).standing is Standing.REFUTED


def test_ratifications_of_different_epochs_accuse_nobody(folder: VerifierFolder, stream: Stream) -> None:
    with OpenVerifier(folder) as opened:
        replay(opened, stream.message())
        heads = (ratify(opened, 2), ratify(opened, 3))
    evidence = Evidence(kind=Kind.OWN_KEY, what="used elsewhere", heads=heads)
    assert judged(listing(stream, folder), evidence).standing is Standing.REFUTED


def test_nobody_else_can_stop_a_verifier(folder: VerifierFolder, stream: Stream) -> None:
    with OpenVerifier(folder) as opened:
        replay(opened, stream.message())
        made = pb.SignedEpochHead.FromString(ratify(opened, 3))
        made.ratifications[0].timestamp_ms += 1  # the signature does not fit
        opened.outbox.check_standing(answer(made.SerializeToString(deterministic=True)))
        stranger = stream.verifiers[0].sign(b"anything")
        made.ratifications[0].signatures[0].CopyFrom(stranger)
        opened.outbox.check_standing(answer(made.SerializeToString(deterministic=True)))
        replicas_only = encoding.encode_signed_head(stream.heads[2], [])
        opened.outbox.check_standing(answer(replicas_only))


@pytest.mark.parametrize("junk", [b"\xff", b"\x0a\x01\xff", bytes(40_000)])
def test_answers_that_are_none_are_malformed(junk: bytes, folder: VerifierFolder, stream: Stream) -> None:
    with OpenVerifier(folder) as opened, pytest.raises(Malformed):
        opened.outbox.check_standing(junk)
