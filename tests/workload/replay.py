"""Replay a log and say what the machine made of it: `python -m workload.replay FILE`, or as a function.

A file is one realm and the payloads, framed by their lengths. The answer has one line for each index, the
verdicts and the state digest, and one for each head.
"""

import locale
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

from keyserver.machine import commands, views
from keyserver.machine.state import GENESIS_POSITION, Machine, Position, ReplicaState, genesis_state
from keyserver.machine.step import Outcome, apply
from kv.interface import Reader
from kv.memory import MemoryStore
from kv.overlay import Overlay
from verifier.realm import parse_realm_json, realm_json
from workload.replica import MIN_INTERVAL_MS, Replica
from workload.script import build

ENTRIES = 5000


@cache
def long_log(seed: int) -> Replica:
    """The log that every replay test reads: at least 5,000 entries, every command, every code of a step."""
    return build(seed, ENTRIES)


def save(path: Path, replica: Replica) -> None:
    """Write the log of a replica."""
    framed = [realm_json(replica.realm), *replica.log]
    path.write_bytes(b"".join(len(item).to_bytes(4, "big") + item for item in framed))


def load(path: Path) -> tuple[Machine, list[bytes]]:
    """Read what `save` wrote."""
    data, items = path.read_bytes(), []
    while data:
        size = int.from_bytes(data[:4], "big")
        items.append(data[4 : 4 + size])
        data = data[4 + size :]
    return Machine(parse_realm_json(items[0]), MIN_INTERVAL_MS), items[1:]


def lines(outcomes: Iterable[Outcome], rows: Reader, state: ReplicaState) -> list[str]:
    """What is compared: one line for each index, then one for each head."""
    found = [
        f"{one.position.index} {bytes(one.verdicts).hex()} {one.position.digest.hex()}" for one in outcomes
    ]
    heads = [views.head_at(rows, epoch) for epoch in range(1, state.epoch + 1)]
    return found + [f"head {head.epoch} {head.root_hash.hex()} {head.hash.hex()}" for head in heads]


def lines_of(replica: Replica) -> list[str]:
    """The lines of the run that made the log."""
    return lines(replica.outcomes, replica.store, replica.state)


def replay(machine: Machine, log: Sequence[bytes], batch: int | None = None) -> list[str]:
    """Apply a log in batches of so many entries each, all in one without a number; the lines."""
    store = MemoryStore()
    state, position, outcomes = genesis_state(machine), GENESIS_POSITION, list[Outcome]()
    for payloads in batches(log, batch or len(log)):
        pending = Overlay(store)
        for outcome in applied(pending, machine, state, position, payloads):
            state, position = outcome.state, outcome.position
            outcomes.append(outcome)
        store.write(pending.writes)
    return lines(outcomes, store, state)


def batches(log: Sequence[bytes], size: int) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(log), size):
        yield log[start : start + size]


def applied(
    pending: Overlay, machine: Machine, state: ReplicaState, position: Position, payloads: Sequence[bytes]
) -> Iterator[Outcome]:
    """Apply payloads one upon the other, as the run loop does before it writes a batch."""
    for payload in payloads:
        outcome = apply(pending, machine, state, position, payload, index=position.index + 1)
        state, position = outcome.state, outcome.position
        for key, value in outcome.writes.items():
            pending.put(key, value)
        yield outcome


def blanked(log: Sequence[bytes]) -> list[bytes]:
    """The log after every private part was erased."""
    return [commands.public_part(payload) for payload in log]


if __name__ == "__main__":
    try:
        locale.setlocale(locale.LC_ALL, "")
    except locale.Error:
        locale.setlocale(locale.LC_ALL, "C")  # this machine does not have the one asked for
    sys.stdout.write("\n".join(replay(*load(Path(sys.argv[1])))) + "\n")
