"""A cluster whose members have applied a log of so many entries, made without processes, as they leave it."""

import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from itertools import islice

from bench_measure import progress
from bench_realm import EPOCHS, Ground, KeptKey, set_up

from keyserver.data_directory import write_version
from keyserver.machine import commands
from keyserver.machine.commands import Tick
from keyserver.machine.state import load_position, load_state
from keyserver.machine.step import apply
from kv.leveldb import LevelDBStore
from kv.overlay import Overlay
from replication.raft.journal import Journal
from replication.raft.messages import APPLICATION
from verifier.files import read_secret

TERM = 1
TURN = 1_000  # entries in a batch
PROGRESS_EVERY = 100_000


@cache
def long_log(entries: int) -> Ground:
    """Three replicas; every entry is a clock reading, which leaves the smallest state behind."""
    ground = set_up(verifiers=0, epochs=EPOCHS, replicas=3)
    first, *others = (config.data for config in ground.configs)
    (first / "raft").mkdir(parents=True)
    journal = Journal(LevelDBStore(first / "raft"), commands.public_part)
    with closing(journal):
        journal.set_vote(TERM, ground.config.replica_name)
        _live(ground, journal, _ticks(ground), entries)
    write_version(first)
    for other in others:
        shutil.copytree(first, other, dirs_exist_ok=True)
    return ground


def _ticks(ground: Ground) -> Iterator[bytes]:
    """Payloads by the first replica, a millisecond apart, the last ones about now."""
    key = KeptKey(read_secret(ground.config.head_key))
    time_ms = time.time_ns() // 1_000_000 - 3_600_000
    while True:
        time_ms += 1
        encoded = commands.encode_envelope(
            replica=key.id, time_ms=time_ms, commands=[commands.encode_command(Tick())]
        )
        signature = key.sign(commands.envelope_message(ground.realm.hash, encoded))
        yield commands.encode_log_entry(encoded, signature, ())


def _live(ground: Ground, journal: Journal, payloads: Iterator[bytes], entries: int) -> None:
    """Append and apply, in batches as large as those of a busy replica."""
    with ground.store() as store:
        state, position = load_state(store, ground.machine), load_position(store)
        for done in range(0, entries, TURN):
            rows = Overlay(store)
            for payload in islice(payloads, min(TURN, entries - done)):
                outcome = apply(rows, ground.machine, state, position, payload)
                state, position = outcome.state, outcome.position
                for key, value in outcome.writes.items():
                    rows.put(key, value)
                journal.append(APPLICATION + payload, journal.last + 1, TERM)
            journal.set_commit(journal.last)
            journal.sync()
            store.write(rows.writes)
            if done and not done % PROGRESS_EVERY:
                progress(f"  {done} entries of {entries}")
