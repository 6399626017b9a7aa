"""gRPC calls by strangers to a realm of real processes: empty, huge, flooding; updates that do not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
from e2eks.v1 import client_pb2
from e2eks.v1 import types_pb2 as pb
from realm_processes.calls import DEADLINE_S, Door, Reply, reply_of
from realm_processes.people import (
    OTHER_KEYS,
    Person,
    connect,
    new_person,
    now_ms,
    register,
    registration,
    update_request,
    version_0,
)
from realm_processes.realm import KEYSERVER, RATIFIED_HEADS, VERIFICATION, RealmProcesses

from attacks.surface import Surface
from keyserver.demo.stage import REPLICA
from verifier import encoding, epoch
from verifier.client import drafts
from verifier.crypto import signatures
from verifier.crypto.hashing import key_id
from verifier.erasure import erasure_message
from verifier.lookup import Present
from verifier.types import Entry, Ratification, Realm, Signature
from verifier.update import update_message

NOBODY = "nobody@example.test"
PATHS = {
    "Lookup": KEYSERVER,
    "Update": KEYSERVER,
    "Erase": KEYSERVER,
    "Consistency": KEYSERVER,
    "PolicyHeads": KEYSERVER,
    "GetRealm": KEYSERVER,
    "VerifierStream": VERIFICATION,
    "PushRatification": VERIFICATION,
    "Get": RATIFIED_HEADS,
}
STREAMS = ("PolicyHeads", "VerifierStream")


def _an_hour_older(proof: client_pb2.RegistrationProof) -> None:
    proof.client_certificate.time_ms -= 3_600_000


# What is done to a good proof of admission.
PROOFS: Mapping[str, Callable[[client_pb2.RegistrationProof], object]] = {
    "an hour old": _an_hour_older,
    "without certificates": lambda proof: proof.client_certificate.ClearField("chain"),
    "with nine certificates": lambda proof: proof.client_certificate.chain.extend(
        [proof.client_certificate.chain[0]] * 8
    ),
    "with garbage for a certificate": lambda proof: proof.client_certificate.chain.insert(0, b"0" * 100),
    "of 70 KiB": lambda proof: proof.client_certificate.chain.append(bytes(70 * 1024)),
    "with an empty signature": lambda proof: proof.client_certificate.ClearField("signature"),
    "of a kind that is not served": lambda proof: setattr(proof, "oidc_token", "e30.e30."),
}


@dataclass(frozen=True)
class Call:
    """One call; a name without a slash is one of PATHS."""

    method: str
    data: bytes = b""
    metadata: tuple[tuple[str, str], ...] = ()
    compressed: bool = False


class WireSurface(Surface):
    """A surface of a running realm."""

    def __init__(self, folder: Path, realm: RealmProcesses) -> None:
        super().__init__(folder)
        self.realm = realm

    @property
    def known(self) -> Realm:
        """What the realm publishes."""
        return self.realm.realm()

    def new_person(self) -> Person:
        assert self.realm.authority is not None
        return new_person(self.known, self.realm.authority)

    def newest_head(self) -> bytes:
        client, transport = connect(self.known)
        with transport:
            return client.lookup(NOBODY).head.head.encoded

    def ratified(self, head: bytes, by: str, time_ms: int = 0) -> Ratification:
        """A ratification of the bytes of a head by the verifier, or replica, of that name."""
        at = time_ms or now_ms()
        made = self.realm.key_of(by).sign(epoch.verifier_message(head, at))
        return Ratification(at, (Signature(self.realm.key_id_of(by), made),))


def said(reply: Reply) -> str:
    """The verdict that a reply stands for."""
    assert reply.domain in ("", "e2eks")
    return f"{reply.code} {reply.reason}".strip()


class Grpc(WireSurface):
    def judge_call(self, call: Call) -> str:
        reply = self._answer(call)
        self.realm.check_alive()
        return said(reply)

    def _answer(self, call: Call) -> Reply:
        path = call.method if "/" in call.method else PATHS[call.method] + call.method
        compression = grpc.Compression.Gzip if call.compressed else grpc.Compression.NoCompression
        options: dict[str, Any] = {"timeout": DEADLINE_S, "metadata": call.metadata}
        with self._door(call.method).channel() as channel:
            try:
                if call.method in STREAMS:
                    stream: Any = channel.unary_stream(path)
                    for _ in stream(call.data, compression=compression, **options):
                        pass  # until its end
                else:
                    unary: Any = channel.unary_unary(path)
                    unary(call.data, compression=compression, **options)
            except grpc.RpcError as error:
                told: Any = error
                assert "@example.test" not in (told.details() or ""), "a refusal repeats a user id"
                return reply_of(error)
        return Reply("OK")

    def _door(self, method: str) -> Door:
        doors: Mapping[str, Callable[[], Door]] = {
            "VerifierStream": self.realm.verification,
            "PushRatification": lambda: self.realm.push("v4"),
            "Get": lambda: self.realm.ratified_heads("v1"),
        }
        return doors.get(method, self.realm.public)()

    # Calls as such

    def make_call(self, method: str, data: str = "") -> Call:
        return Call(method, bytes.fromhex(data))

    def make_zeros(self, method: str, count: int, compressed: bool = False) -> Call:
        return Call(method, bytes(count), compressed=compressed)

    def make_lookup(self, user: str = NOBODY, epoch: int = 0, min_epoch: int = 0) -> Call:
        request = client_pb2.LookupRequest(user_id=user, epoch=epoch, min_epoch=min_epoch)
        return Call("Lookup", request.SerializeToString())

    def make_metadata(self, names: int, characters: int) -> Call:
        """A good lookup behind so many headers of so many characters."""
        headers = tuple((f"x-header-{number}", "v" * characters) for number in range(names))
        return Call("Lookup", self.make_lookup().data, headers)

    def make_compressed_lookup(self) -> Call:
        return Call("Lookup", self.make_lookup().data, compressed=True)

    def make_lookup_under(self, threshold: int, keys: Sequence[str], depth: int = 1) -> Call:
        """A lookup under a quorum of the named replicas and verifiers; another text stands for a stranger."""
        named = {"replica": REPLICA, **{name: name for name in self.realm.verifiers}}
        ids = [self.realm.key_id_of(named[k]) if k in named else k.encode().ljust(32) for k in keys]
        quorum = pb.QuorumExpr(threshold=threshold, candidates=ids)
        for _ in range(depth - 1):
            quorum = pb.QuorumExpr(threshold=1, subexpressions=[quorum])
        request = client_pb2.LookupRequest(user_id=NOBODY, quorum_requirement=quorum)
        return Call("Lookup", request.SerializeToString())

    # Updates: a lawful registration of somebody new, spoiled

    def make_update(self, **changes: Any) -> Call:
        """Fields of the request, replaced; text is hexadecimal, an empty one leaves a field out."""
        request = self._registration()
        for name, value in changes.items():
            owner, _, field = name.rpartition("__")
            message: Any = getattr(request, owner) if owner else request
            if value == "":
                message.ClearField(field)
            else:
                setattr(message, field, bytes.fromhex(value) if isinstance(value, str) else value)
        return Call("Update", request.SerializeToString())

    def _registration(self) -> client_pb2.UpdateRequest:
        person = self.new_person()
        client, transport = connect(self.known)
        with transport:
            return update_request(*registration(client, person))

    def make_update_of(self, user: str) -> Call:
        """The registration of somebody in another one's name."""
        request = self._registration()
        request.lookup_parameters.user_id = user
        return Call("Update", request.SerializeToString())

    def make_update_with_profile(self, characters: int) -> Call:
        """A registration with another, longer profile than the entry commits to."""
        request = self._registration()
        request.profile = encoding.encode_profile({"pgp": bytes(characters)})
        return Call("Update", request.SerializeToString())

    def make_update_signed_by_another(self) -> Call:
        request = self._registration()
        request.update.signatures[0].signature = signatures.sign(bytes(32), bytes(32))
        return Call("Update", request.SerializeToString())

    def make_update_for_another_realm(self) -> Call:
        person = self.new_person()
        client, transport = connect(self.known)
        with transport:
            draft, proof = version_0(client, person, replace(self.known, hash=bytes(32)))
        return Call("Update", update_request(draft, proof).SerializeToString())

    def make_taken_name(self, by: str) -> Call:
        """A second registration of a name, by its owner or by somebody who has a certificate for it too."""
        person = self.new_person()
        client, transport = connect(self.known)
        with transport:
            register(client, person)
            if by == "its owner, next version":
                draft = client.draft_update(person.user_id, OTHER_KEYS, [person.key])
                return Call("Update", update_request(draft).SerializeToString())
            draft, proof = version_0(client, person, self.known)
        return Call("Update", update_request(draft, proof).SerializeToString())

    def make_proof(self, how: str) -> Call:
        """A registration with a proof of admission that is not its own, or none."""
        person, other = self.new_person(), self.new_person()
        client, transport = connect(self.known)
        with transport:
            draft, proof = registration(client, person)
            another = client.draft_registration(person.user_id, OTHER_KEYS, [person.key])
            theirs = registration(client, other)[1]
        shown = {
            "none": b"",
            "of another person": theirs,
            "by another's certificate": other.admission(person.user_id)(draft.update.entry),
            "for another entry": person.admission()(another.update.entry),
        }
        message = client_pb2.RegistrationProof.FromString(shown.get(how, proof))
        if how in PROOFS:
            PROOFS[how](message)
        return Call("Update", update_request(draft, message.SerializeToString()).SerializeToString())

    # Pushes

    def make_push(self, how: str) -> Call:
        """The newest head, ratified by v4 in some way, over v4's own connection."""
        head = self.newest_head()
        own = self.ratified(head, "v4")
        at = encoding.decode_head(head).issue_time_ms
        as_replica = self.realm.key_of("v4").sign(epoch.replica_message(head, at))
        ratifications: Mapping[str, list[Ratification]] = {
            "by itself": [own],
            "by nobody": [],
            "by v1": [self.ratified(head, "v1")],
            "by the replica": [self.ratified(head, REPLICA)],
            "by itself and v1": [own, self.ratified(head, "v1")],
            "at another time": [Ratification(own.timestamp_ms + 1, own.signatures)],
            "as a replica": [Ratification(at, (Signature(own.signatures[0].key_id, as_replica),))],
            "with zeros": [Ratification(at, (Signature(own.signatures[0].key_id, bytes(64)),))],
        }
        return Call("PushRatification", encoding.encode_signed_head(head, ratifications[how]))

    def make_push_of_head_with(self, field: str, value: int | str) -> Call:
        """A head of its own making, ratified by v4."""
        message = pb.EpochHead.FromString(self.newest_head())
        setattr(message, field, bytes.fromhex(value) if isinstance(value, str) else value)
        head = encoding.canonical(message)
        return Call("PushRatification", encoding.encode_signed_head(head, [self.ratified(head, "v4")]))

    def make_push_of_a_second_head(self) -> Call:
        """A head of its own making, of an epoch whose true head v4 has ratified."""
        assert self.judge_call(self.make_push("by itself")) == "OK"
        return self.make_push_of_head_with("root_hash", "07" * 32)

    # Erasures

    def make_erasure(self, how: str) -> Call:
        """Somebody's second entry is to be erased: by its owner, or by somebody who may not."""
        person, other = self.new_person(), self.new_person()
        client, transport = connect(self.known)
        with transport:
            first = register(client, person).entry
            second = client.submit(client.draft_update(person.user_id, OTHER_KEYS, [person.key]))
        assert isinstance(second.result, Present)
        entry = second.result.entry
        elsewhere = replace(self.known, hash=bytes(32))
        by_other = other.key.sign(erasure_message(self.known.hash, entry.index, entry.hash))
        as_update = person.key.sign(update_message(self.known.hash, entry.encoded))
        request = client_pb2.EraseRequest.FromString(_erasure(self.known, person, entry))
        match how:
            case "unsigned":
                del request.signatures[:]
            case "by a stranger":
                del request.signatures[:]
                request.signatures.add(key_id=key_id(other.key.public_key), signature=by_other)
            case "by a stranger under the owner's id":
                request.signatures[0].signature = by_other
            case "with the update's signature":
                request.signatures[0].signature = as_update
            case "signed for another realm":
                request.MergeFromString(_erasure(elsewhere, person, entry))
                del request.signatures[0]
            case "of the entry before":
                request.ParseFromString(_erasure(self.known, person, first))
            case "in another's name":
                request.user_id = other.user_id
            case "signed twice":
                request.signatures.extend(list(request.signatures))
        return Call("Erase", request.SerializeToString())


def _erasure(realm: Realm, person: Person, entry: Entry) -> bytes:
    """The EraseRequest for an entry, signed by its owner."""
    return drafts.erasure(realm, person.user_id, entry, [person.key], bytes)
