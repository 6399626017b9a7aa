"""A full replay by anybody: the whole verifier log from a keyserver into a store that is thrown away.

It signs nothing. What it says is what a ratification claims, checked once more from the first step.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kv.leveldb import LevelDBStore
from verifier.daemon.failures import Misbehaved, Unreachable, UpgradeNeeded
from verifier.daemon.state import State, load_state
from verifier.daemon.step import Upgrade, apply_message
from verifier.daemon.transport import Keyserver
from verifier.types import Realm

PAGE_STEPS = 10_000
PAGE_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Audited:
    """How far the log was replayed; `head_hash` is that of the newest head."""

    steps: int
    epoch: int
    head_hash: bytes
    issue_time_ms: int
    pending_updates: int


def audit(realm: Realm, keyserver: Keyserver, progress: Callable[[State], None]) -> Audited:
    """Replay everything the keyserver has. Raises Misbehaved, UpgradeNeeded, Unreachable, CallRefused."""
    with tempfile.TemporaryDirectory(prefix="e2eks-audit-") as folder:
        store = LevelDBStore(Path(folder) / "data")
        try:
            return _replay(realm, store, keyserver, progress)
        finally:
            store.close()


def _replay(
    realm: Realm, store: LevelDBStore, keyserver: Keyserver, progress: Callable[[State], None]
) -> Audited:
    state = load_state(store, realm)
    while True:
        start = state.next_index
        stream = keyserver.follow(start, page_size=PAGE_STEPS, timeout_s=PAGE_TIMEOUT_S)
        try:
            while (message := stream.read()) is not None:
                outcome = apply_message(store, realm, state, message)
                state = outcome.state
                if isinstance(outcome.stop, Upgrade):
                    raise UpgradeNeeded(f"the realm follows rules level {outcome.stop.rules}: upgrade")
                if outcome.stop is not None:
                    raise Misbehaved(outcome.stop)
                store.write(outcome.writes)
                progress(state)
            if stream.overdue:  # there may be more: what was read says nothing about the rest
                raise Unreachable(f"the keyserver stopped sending after step {state.next_index - 1}")
        finally:
            stream.cancel()
        if state.next_index - start < PAGE_STEPS:
            break
    if state.next_index == 1:
        raise Unreachable("the keyserver sent no step")
    chain = state.chain
    return Audited(
        state.next_index - 1, chain.epoch, chain.head_hash, chain.issue_time_ms, state.pending_updates
    )
