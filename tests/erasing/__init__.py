"""What tests of erasure ask of a replica, and what they find on its disk."""

import trio
from asking import PATIENCE
from e2eks.v1 import client_pb2
from e2eks.v1 import types_pb2 as pb

from keyserver.machine.erasure import owed_blankings
from keyserver.run import Parts
from keyserver.testing import Disk, Person, seed
from kv.memory import MemoryStore
from verifier.crypto import hashing, signatures
from verifier.erasure import erasure_message

KEY, OTHER_KEY = b"a key to be forgotten", b"another key to be forgotten"


def erase(person: Person, **changes: object) -> bytes:
    """The bytes of a lawful EraseRequest, unless changed."""
    assert person.entry is not None
    index, hashed = person.index, person.entry.hash
    secret = seed(person.user_id)
    made = signatures.sign(secret, erasure_message(person.small.realm.hash, index, hashed))
    own = pb.Signature(key_id=hashing.key_id(signatures.public_key(secret)), signature=made)
    fields: dict[str, object] = {
        "user_id": person.user_id,
        "index": index,
        "entry_hash": hashed,
        "signatures": [own],
    }
    return client_pb2.EraseRequest(**{**fields, **changes}).SerializeToString()  # type: ignore[arg-type]


async def paid(parts: Parts) -> None:
    """Wait until no duty is left."""
    with trio.fail_after(PATIENCE):
        while True:
            turn = parts.replica.applied.turn()
            if not owed_blankings(parts.replica.store, 1):
                return
            await turn.wait()


def private_bytes(disk: Disk) -> bytes:
    """Every value of database and log."""
    found = b""
    for memory in (disk.database, disk.log):
        store = MemoryStore(memory)
        found += b"".join(value for _, value in store.scan(b"", b"\xff"))
        store.close()
    return found


def known_of(disk: Disk, person: Person) -> list[bytes]:
    """What is on the disk of a person's name and keys."""
    data = private_bytes(disk)
    return [secret for secret in (person.user_id.encode(), KEY, OTHER_KEY) if secret in data]
