"""Opening what belongs together: database, sign-once register, key and realm. Anything else is quarantine.

The register is written after the head is stored and before the ratification is. So it is never behind the
ratifications in the database, and never ahead of the heads there: either means that one of them was lost,
restored or copied, and then nobody knows any more what this key has signed.
"""

from __future__ import annotations

from pathlib import Path

from kv.interface import Reader, StorageError, Store
from kv.leveldb import LevelDBStore
from verifier.crypto import hashing, signatures
from verifier.daemon.failures import REKEY, Quarantined
from verifier.daemon.state import head_at, load_state, newest_ratified
from verifier.daemon.tables import VerifierTables as Tables
from verifier.signonce import RegisterMissing, SignOnceRegister
from verifier.types import Realm

OWNER = Tables.META.key(b"owner")
VERSION = Tables.META.key(b"version")
FORMAT = b"1"


def open_database(path: Path, realm: Realm, key_id: bytes) -> Store:
    """The database of this verifier of this realm, made if it is not there. Raises Quarantined,
    StorageError.
    """
    store = LevelDBStore(path)
    try:
        claim(store, realm, key_id)
    except BaseException:
        store.close()
        raise
    return store


def claim(store: Store, realm: Realm, key_id: bytes) -> None:
    """Write into an empty database whose it is and in which form it is written; in another one, raise
    Quarantined unless it is the same's, StorageError unless it has the same form.
    """
    owner = realm.hash + key_id
    found = store.get(OWNER)
    if found is None:
        if next(iter(store.scan(*Tables.STATE.span())), None) is not None:
            raise Quarantined("the database does not say whose it is: it was not made by a verifier")
        store.write({OWNER: owner, VERSION: FORMAT})
        return
    version = store.get(VERSION)
    if version != FORMAT:
        says = "none" if version is None else repr(version.decode("ascii", "backslashreplace"))
        raise StorageError(
            f"the version of the verifier's database is {says}; this version of verifier reads "
            f"{FORMAT.decode()!r} only. Run the version that wrote it. Nothing was changed"
        )
    if found[: len(realm.hash)] != realm.hash:
        raise Quarantined(
            "the realm file describes another realm than the database was made for: the realm hashes differ. "
            "A realm keeps its hash while addresses, TLS roots and verifiers change; get the right "
            "realm.json, or set up another verifier for the other realm"
        )
    if found != owner:
        what = "the database belongs to another verifier key. Name the folder that belongs to this key; if a "
        what += "`verifier rekey` was cut off, run it again"
        raise Quarantined(what)


def open_register(path: Path, key_id: bytes) -> SignOnceRegister:
    """The sign-once register of the key. Raises Quarantined when it is missing, StorageError."""
    try:
        return SignOnceRegister.open(path, key_id=key_id)
    except RegisterMissing as error:
        raise Quarantined(f"{error}: what this key has signed is not known any more. {REKEY}") from None


def check_register(reader: Reader, realm: Realm, register: SignOnceRegister) -> None:
    """Raises Quarantined unless register and database stand where one run of this verifier left them."""
    row = register.newest()
    signed = row.epoch if row else 0
    known = max(signed, register.floor)  # a new key's register begins at the floor, the former key's end
    ratified, replayed = newest_ratified(reader), load_state(reader, realm).chain.epoch
    if known < ratified:
        raise Quarantined(
            f"the sign-once register ends at epoch {known}, the database knows of a signature on epoch "
            f"{ratified}: the register was lost or restored. {REKEY}"
        )
    if signed > replayed:
        raise Quarantined(
            f"the database ends at epoch {replayed}, the register knows of a signature on epoch {signed}: "
            f"the database lost its newest part, or was restored. {REKEY}"
        )
    head = head_at(reader, signed) if row else None
    if row and (head is None or head.head.hash != row.head_hash):
        raise Quarantined(f"the register holds another head of epoch {signed} than the database. {REKEY}")


def check_key(realm: Realm, seed: bytes) -> tuple[bytes, bytes]:
    """Public key and key id of the verifier's secret. Raises Quarantined when it is a replica's."""
    public_key = signatures.public_key(seed)
    key_id = hashing.key_id(public_key)
    if key_id in realm.genesis_policy.keys:
        raise Quarantined("the key is one of the realm's replicas': a verifier needs a key of its own")
    return public_key, key_id
