"""The rows, the log and the register of a replica that a script of random traffic left behind."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from e2eks.v1 import state_pb2 as pb
from workload.cast import derive
from workload.replica import MIN_INTERVAL_MS, Replica
from workload.script import build

from keyserver.copies.check import Faults, Report, Subject, check
from keyserver.copies.check_register import Recorded
from keyserver.copies.moment import subject_of
from keyserver.machine import commands, views
from keyserver.machine.state import Machine
from keyserver.machine.tables import Tables
from keyserver.vrf_cache import cache_key
from kv.keys import EVERYTHING, u64
from kv.memory import MemoryStore
from replication.chain import FIRST_LINK, next_link
from replication.rows import FORMAT, LogTables, entry_key
from verifier.crypto import vrf
from verifier.realm import user_id_alpha
from verifier.signonce import Row

NAMES = 12  # of which the VRF cache has a row


@dataclass
class Kept:
    """Everything on the disk of one replica, to be spoiled at will."""

    machine: Machine
    rows: dict[bytes, bytes]
    log: dict[bytes, bytes]
    recorded: Recorded
    names: list[str] = field(default_factory=list)

    def copy(self) -> "Kept":
        recorded = replace(self.recorded, rows=dict(self.recorded.rows))
        return Kept(self.machine, dict(self.rows), dict(self.log), recorded, list(self.names))

    def subject(self) -> Subject:
        return subject_of(store_of(self.rows), store_of(self.log), Faults())

    def check(self) -> Report:
        return check(self.machine, self.subject(), MemoryStore(), recorded=self.recorded)


def store_of(rows: dict[bytes, bytes]) -> MemoryStore:
    store = MemoryStore()
    store.write(rows)
    return store


def kept_by(replica: Replica) -> Kept:
    """What this replica has written; a register for its first key; a VRF cache for some of its users."""
    rows = dict(replica.store.scan(*EVERYTHING))
    names = list(dict.fromkeys(_names(rows)))[:NAMES]
    key = vrf.VrfKey(derive("key", "vrf", replica.realm.name))
    assert key.public_key == replica.realm.vrf_public_key
    for name in names:
        proof = vrf.prove(key, user_id_alpha(replica.realm.name, name))
        rows[cache_key(name)] = vrf.index(vrf.proof_to_hash(proof)) + proof
    machine = Machine(replica.realm, MIN_INTERVAL_MS)
    return Kept(machine, rows, log_rows(replica.log), register_of(replica), names)


def scripted(seed: int, entries: int, replicas: int = 3) -> Kept:
    """A log of at least so many entries with everything in it."""
    return kept_by(build(seed, entries, replicas))


def log_rows(log: list[bytes]) -> dict[bytes, bytes]:
    """The rows of a local log with these payloads."""
    rows, link = {LogTables.FORMAT.key(): FORMAT}, FIRST_LINK
    for index, payload in enumerate(log, 1):
        link = next_link(link, index, commands.public_part(payload))
        rows[entry_key(index)] = link + payload
    return rows


def register_of(replica: Replica) -> Recorded:
    """What the sign-once register of the first replica holds."""
    own, signed = replica.replicas[0], {}
    for epoch in range(1, replica.state.epoch + 1):
        signature = replica.store.get(Tables.REPLICA_SIGNATURES.key(u64(epoch), own.id))
        if signature is not None:
            head = views.head_at(replica.store, epoch)
            index = views.known_head_row(replica.store, epoch).log_index
            signed[epoch] = Row(epoch, head.hash, head.issue_time_ms, index, head.state_digest, signature)
    return Recorded(own.public_key, 0, signed)


def _names(rows: dict[bytes, bytes]) -> Iterator[str]:
    start, stop = Tables.PROFILES.span()
    for key in sorted(rows):
        if start <= key < stop:
            yield pb.PrivateRow.FromString(rows[key]).user_id
