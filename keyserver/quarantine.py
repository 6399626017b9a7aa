"""Quarantine: what makes a replica start without the right to sign, and the evidence that keeps it so.

A replica in quarantine answers lookups and signs nothing: no head, no log entry, no endorsement. It stays
there until it has a new key (`keyserver keys rekey`). Reasons at a start: its data is a restored backup, its
register is missing or older than its data, the two tell of different pasts, evidence about its key was kept,
or, without a cluster, its key is not among those of the replicas' policy.

A database or log that ends before what the register signed is no quarantine but a refusal to start: the
newest copy may still be found.
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from keyserver.config import Config
from keyserver.copies.backup_restore import RESTORED
from keyserver.data_directory import DataDirectory, check_register
from keyserver.machine.state import Machine, ReplicaState, load_state
from keyserver.signer import REKEY, Signer
from verifier.errors import ConfigError
from verifier.files import write_new
from verifier.types import Realm

EVIDENCE = "evidence"  # a folder beside the sign-once register: outside the data, and of its backups
SCHEMA = "e2eks.evidence/1"
OWN_KEY, DIFFERENT = "own-key", "heads-differ"  # what evidence is about: the file's name begins with it
KEY_DIGITS = 16  # of the key id in a file's name: a new key has a clean record


class Evidence(msgspec.Struct, frozen=True):
    """What `verifier evidence verify` judges. Kind "fork" proves itself; "register" is testimony."""

    kind: str
    what: str
    time_ms: int
    heads: tuple[bytes, ...] = ()
    policy_heads: tuple[bytes, ...] = ()


class _Document(Evidence, frozen=True, kw_only=True):
    schema: str
    realm: str
    realm_hash: str


def evidence_folder(config: Config) -> Path:
    """Where evidence about the configured replica's key is kept."""
    return config.sign_once_register.parent / EVIDENCE


def keep_evidence(
    folder: Path, realm: Realm, key_id: bytes, evidence: Evidence, *, about: str = OWN_KEY
) -> Path:
    """The new file that holds the evidence, synced. Raises ConfigError."""
    fields = {name: getattr(evidence, name) for name in Evidence.__struct_fields__}
    document = _Document(schema=SCHEMA, realm=realm.name, realm_hash=realm.hash.hex(), **fields)
    path = folder / f"{about}-{key_id.hex()[:KEY_DIGITS]}-{time.time_ns()}.json"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the folder {folder} cannot be made: {error.strerror}") from None
    write_new(path, msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
    return path


def kept_evidence(config: Config, key_id: bytes, about: str = OWN_KEY) -> list[Path]:
    """The files of evidence about a key, or about the heads that it signs, oldest first."""
    return sorted(evidence_folder(config).glob(f"{about}-{key_id.hex()[:KEY_DIGITS]}-*.json"))


def check_start(config: Config, data: DataDirectory, signer: Signer) -> None:
    """Put the signer into quarantine if it must not sign. Raises LostTail, Halt, StorageError."""
    if (config.data / RESTORED).exists():
        signer.quarantine(
            "the data was restored from a backup, which does not know what was signed after it was made. "
            + REKEY
        )
    else:
        check_register(data.store, data.log, signer)
    for path in kept_evidence(config, signer.key_id):
        signer.quarantine(f"there is evidence that this key was used elsewhere: {path}. {REKEY}")
    state = load_state(data.store, Machine(config.realm, config.epochs.min_interval_ms))
    if config.cluster is None:  # there the log may take it in while it runs
        why = outside(state, signer.key_id)
        if why:
            signer.quarantine(why)


def outside(state: ReplicaState, key_id: bytes) -> str:
    """Why a key counts for nothing now, or "" if it is one of the replicas'."""
    return "" if key_id in state.policy.keys else not_a_replica(state)


def not_a_replica(state: ReplicaState) -> str:
    """Why a key that the replicas' policy does not name signs nothing, and what must follow."""
    why = f"this replica's key is not among the {len(state.policy.keys)} of the replicas' policy of epoch "
    return f"{why}{state.epoch + 1}. {what_follows(state)}"


def what_follows(state: ReplicaState) -> str:
    """What must happen before a replica with a new key signs again."""
    replicas = len(state.policy.keys)
    if replicas == 1:
        return (
            f"A realm of one replica cannot take it in: the change would have to be signed by the retired "
            f"key. No head will follow epoch {state.epoch}; lookups go on until its proofs are too old. "
            "Set up a new realm with `keyserver init`, publish its realm.json, and let people register again"
        )
    majority = replicas // 2 + 1
    return (
        f"The realm takes it in by a change of its replicas that {majority} of the {replicas} present keys "
        "approve, and this one: keyserver replicas replace (docs/operations/cluster.md). Until then this "
        "replica answers lookups only"
    )
