"""A verifier that replays a realm from the first step, beside the signature checks in that log alone."""

from collections.abc import Iterator
from contextlib import closing

from bench_measure import Measured, Plan, alternated, median, median_ratio
from bench_realm import Ground, Growth, name_of, set_up, temporary_folder
from streams.build import steps_message

from keyserver.machine import views
from kv.interface import Reader, Store
from kv.leveldb import LevelDBStore
from kv.memory import MemoryStore
from verifier import limits
from verifier.crypto import signatures
from verifier.daemon.state import first_state
from verifier.daemon.step import apply_message
from verifier.epoch import replica_message
from verifier.proof_encoding import decode_steps
from verifier.types import Realm, UpdateStep
from verifier.update import update_message

UPDATES_AN_EPOCH = 250
STEPS_A_MESSAGE = 1000

Check = tuple[bytes, bytes, bytes]  # public key, message, signature


def verifier_replay(plan: Plan) -> Iterator[Measured]:
    """The daemon's replay of registrations and later updates, a batch for each message, in LevelDB."""
    users = plan.size(2000, 100)
    ground = set_up(verifiers=0)
    messages = _grow(ground, users)
    checks = list(_checks(ground.realm, messages))
    updates = ground.updates
    folder = temporary_folder()
    stores = iter([LevelDBStore(folder / str(number)) for number in range(plan.repetitions)])

    def on_disk() -> None:
        with closing(next(stores)) as store:
            replay(store, ground.realm, messages)

    disk, memory, crypto = alternated(
        plan.repetitions,
        on_disk,
        lambda: replay(MemoryStore(), ground.realm, messages),
        lambda: _check_all(checks),
    )
    metrics = {
        "per_s": updates / median(disk),
        "update_us": 1e6 * median(disk) / updates,
        "crypto_floor_us": 1e6 * median(crypto) / updates,
        "ratio_to_crypto_floor": median_ratio(disk, crypto),
        "ratio_in_memory": median_ratio(memory, crypto),
    }
    params = {"updates": updates, "users": users, "updates_an_epoch": UPDATES_AN_EPOCH}
    yield Measured("verifier-replay", params, metrics)


def _grow(ground: Ground, users: int) -> list[bytes]:
    """Register all users, then update them once; the verifier log in messages as they are streamed."""
    names = [name_of(number) for number in range(users)]
    with Growth(ground) as growth:
        for _ in range(2):
            for first in range(0, users, UPDATES_AN_EPOCH):
                growth.update(names[first : first + UPDATES_AN_EPOCH])
                growth.close_epoch()
    with ground.store() as store:
        return streamed(store)


def streamed(reader: Reader) -> list[bytes]:
    """The whole verifier log of a replica, in messages as they are streamed."""
    messages, start = [], 1
    while steps := views.verifier_steps(reader, start, limits.VERIFIER_STEPS_BYTES, STEPS_A_MESSAGE):
        messages.append(steps_message(*steps))
        start += len(steps)
    return messages


def _checks(realm: Realm, messages: list[bytes]) -> Iterator[Check]:
    """Every signature check in the log that no verifier can do without."""
    for message in messages:
        for step in decode_steps(message):
            if isinstance(step, UpdateStep):
                entry = step.update.entry
                keys = entry.update_policy.keys if entry.update_policy else {}
                signed, made = update_message(realm.hash, entry.encoded), step.update.signatures
            else:
                (ratification,) = step.head.ratifications
                keys = realm.genesis_policy.keys
                signed = replica_message(step.head.head.encoded, ratification.timestamp_ms)
                made = ratification.signatures
            yield from ((keys[s.key_id], signed, s.signature) for s in made)


def replay(store: Store, realm: Realm, messages: list[bytes]) -> None:
    """Replay into an empty database, a batch for each message."""
    state = first_state(realm)
    for message in messages:
        outcome = apply_message(store, realm, state, message)
        if outcome.stop is not None:
            raise AssertionError("the log of the benchmark is not lawful")
        store.write(outcome.writes)
        state = outcome.state


def _check_all(checks: list[Check]) -> None:
    if not all(signatures.verify(*check) for check in checks):
        raise AssertionError("a signature of the benchmark does not verify")
