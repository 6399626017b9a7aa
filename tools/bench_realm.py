"""A realm to measure: set up as operators do it, grown by the real step with real signatures, on disk.

What is grown is what a replica would have left behind: database, log, sign-once register and verifiers' keys.
So the machine's functions can be measured on it, and real processes can be started in it.
"""

import atexit
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import trio
from bench_measure import progress
from workload.cast import Draft, Key, User, draft

from keyserver.config import Config, Epochs, load_config
from keyserver.data_directory import write_version
from keyserver.demo.processes import free_port
from keyserver.installation import setup
from keyserver.machine import commands, views
from keyserver.machine.codes import Code
from keyserver.machine.commands import AddRatification, AdmitVerifier, Command, Delimiter, SignHead
from keyserver.machine.rows import vrf_cache_key
from keyserver.machine.state import Machine, load_position, load_state
from keyserver.machine.step import apply
from keyserver.signer import Signer, load_signer
from keyserver.verifier_list import read_verifier_info
from kv.leveldb import LevelDBStore
from replication.local import open_local_log
from verifier import encoding
from verifier.crypto import hashing
from verifier.crypto.signatures import SigningKey
from verifier.daemon import setup as verifier_setup
from verifier.epoch import verifier_message
from verifier.files import read_secret
from verifier.types import Ratification, Realm

HOST = "127.0.0.1"
REALM = "example.test"
TTL_MS = 24 * 3600 * 1000  # a realm grown once is measured for as long as a run lasts
EPOCHS = Epochs(min_interval_ms=200, max_interval_ms=12 * 3600 * 1000, retry_interval_ms=500)
COMMANDS_AN_ENTRY = 256
PROGRESS_EVERY = 20_000

_FOLDERS = ExitStack()  # of this process; removed when the benchmarks are over


class KeptKey(Key):
    """A key that was made from a seed, in the form that drafts take."""

    def __init__(self, seed: bytes) -> None:
        secret = SigningKey(seed)
        self.public_key = secret.public_key
        self.id = hashing.key_id(secret.public_key)
        self.sign = secret.sign


@dataclass(frozen=True, slots=True)
class Verifier:
    """A verifier's folder and key."""

    folder: Path
    key: Key


NO_LIMITS = "\n[limits]\n" + "".join(
    f"{name} = {{ per_second = 1e9, at_once = 1e9 }}\n"
    for name in (
        "peer_calls",
        "peer_updates",
        "peer_unknown_names",
        "peer_unknown_lookups",
        "peer_name_lookups",
        "peer_new_connections",
    )
)


@dataclass(slots=True)
class Ground:
    """A realm on disk: `folder` as `keyserver init` makes it, and folders of its verifiers.

    What grows without processes is one replica's; a cluster begins empty.
    """

    folder: Path
    configs: tuple[Config, ...]  # one for each replica
    verifiers: tuple[Verifier, ...]
    users: dict[str, User] = field(default_factory=dict)
    updates: int = 0

    @property
    def config(self) -> Config:
        """The first replica's."""
        return self.configs[0]

    @property
    def realm(self) -> Realm:
        return self.config.realm

    def lift_limits(self) -> None:
        """Let one address ask as much as it can, as the load of a benchmark does, from the next start on."""
        for config in self.configs:
            text = config.path.read_text()
            if "[limits]" not in text:
                config.path.write_text(text + NO_LIMITS)

    @property
    def machine(self) -> Machine:
        return Machine(self.realm, self.config.epochs.min_interval_ms)

    @contextmanager
    def store(self) -> Iterator[LevelDBStore]:
        """The replica's database. No process may have it open."""
        with closing(LevelDBStore(self.config.data / "db")) as store:
            yield store

    @contextmanager
    def signer(self) -> Iterator[Signer]:
        """The replica's keys and register."""
        with closing(load_signer(self.config)) as signer:
            yield signer


def temporary_folder() -> Path:
    """A folder that is removed when the benchmarks are over."""
    return Path(_FOLDERS.enter_context(TemporaryDirectory(prefix="e2eks-bench-")))


@atexit.register
def remove_folders() -> None:
    """Remove every folder that was made."""
    grown.cache_clear()
    _FOLDERS.close()


def set_up(verifiers: int, epochs: Epochs = EPOCHS, replicas: int = 1) -> Ground:
    """A realm of some replicas and verifiers, without history, where anybody may register any name."""
    folder = temporary_folder()
    plan = setup.Plan(
        realm=REALM,
        replicas=tuple(setup.Replica(f"r{number + 1}", HOST, _ports()) for number in range(replicas)),
        epochs=epochs,
        epoch_ttl_ms=TTL_MS,
        insecure_skip_registration_proof=True,
    )
    now = datetime.now(UTC)
    made = setup.init(folder / "realm", plan, now)
    configs = [load_config(path) for path in made.configs]
    listed = tuple(_verifier(folder, number, made.realm_file, configs, now) for number in range(verifiers))
    if listed:
        infos = [read_verifier_info(verifier.folder / "verifier-info.json") for verifier in listed]
        setup.add_verifiers(configs[0], infos, others=configs[1:])
    ground = Ground(folder / "realm", tuple(load_config(path) for path in made.configs), listed)
    for verifier in listed:
        (verifier.folder / "realm.json").write_bytes(ground.config.realm_json)
    return ground


def _ports() -> setup.Ports:
    return setup.Ports(*(free_port() for _ in fields(setup.Ports)))


def _verifier(
    folder: Path, number: int, realm_file: Path, configs: Sequence[Config], now: datetime
) -> Verifier:
    home = folder / f"verifier-{number}"
    plan = verifier_setup.Plan(
        name=f"v{number}",
        address=f"{HOST}:{free_port()}",
        verification=tuple(config.listen.verification for config in configs),
        push=tuple(config.listen.push for config in configs),
    )
    verifier_setup.init(home, realm_file, plan, now)
    return Verifier(home, KeptKey(read_secret(home / "verifier.key")))


@cache
def grown(users: int, epoch_users: int = 10_000) -> Ground:
    """A realm with two verifiers and so many registered users, `epoch_users` in an epoch; made once."""
    ground = set_up(verifiers=2)
    names = [name_of(number) for number in range(users)]
    started = time.monotonic()
    with Growth(ground) as growth:
        for first in range(0, users, epoch_users):
            growth.update(names[first : first + epoch_users])
            growth.close_epoch(last=first + epoch_users >= users)
            if first // PROGRESS_EVERY != (first + epoch_users) // PROGRESS_EVERY:
                progress(f"  grown to {len(ground.users)} users, {time.monotonic() - started:.0f} s")
    return ground


def name_of(number: int) -> str:
    """The user id of a numbered user."""
    return f"user-{number}@{REALM}"


class Growth:
    """Lets a realm live without processes: commits entries to its machine, and to its log at the end."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._machine = ground.machine
        self._payloads: list[bytes] = []
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._store = self._open.enter_context(self._ground.store())
        self._signer = self._open.enter_context(self._ground.signer())
        self._state = load_state(self._store, self._machine)
        self._position = load_position(self._store)
        self._first = self._position.index + 1
        # Log time starts an hour ago: epochs follow each other faster here than the law allows.
        self._clock_ms = max(self._state.issue_time_ms, time.time_ns() // 1_000_000 - 3_600_000)
        if self._position.index == 0:
            self._commit([AdmitVerifier(verifier.key.public_key) for verifier in self._ground.verifiers])
        return self

    def __exit__(self, *exception: object) -> None:
        with self._open:
            if exception[0] is None:
                trio.run(_append, self._ground.config.data / "log", self._first, self._payloads)
                write_version(self._ground.config.data)

    def update(self, names: Sequence[str], profile_bytes: int = 0) -> None:
        """Register the users, or update those that are registered, in entries of many commands."""
        replica: Key = KeptKey(read_secret(self._ground.config.head_key))
        for first in range(0, len(names), COMMANDS_AN_ENTRY):
            drafts: list[Draft] = []
            rows: dict[bytes, bytes | None] = {}
            for name in names[first : first + COMMANDS_AN_ENTRY]:
                user, row = self._user(name)
                rows.update(row)
                endorsers = (replica,) if user.version is None else ()
                made = draft(self._ground.realm, user, endorsers=endorsers, padding=profile_bytes)
                user.accepted(made.entry)
                drafts.append(made)
            self._commit([made.command for made in drafts], [made.part for made in drafts], rows)
        self._ground.updates += len(names)

    def _user(self, name: str) -> tuple[User, dict[bytes, bytes | None]]:
        user = self._ground.users.get(name)
        if user is not None:
            return user, {}
        index, index_proof = self._signer.vrf_prove(name)
        user = self._ground.users[name] = User(index, name, [Key("device", name)])
        return user, {vrf_cache_key(name): index + index_proof}

    def close_epoch(self, *, last: bool = False) -> None:
        """Delimit, sign, ratify by all verifiers; the last epoch is issued now."""
        now_ms = time.time_ns() // 1_000_000
        self._clock_ms = now_ms if last else self._clock_ms + self._machine.min_epoch_interval_ms
        before = self._position
        epoch = self._state.epoch + 1
        self._commit([Delimiter(epoch, self._clock_ms)])
        head = views.head_at(self._store, epoch)
        made = self._signer.sign_head(head.encoded, log_index=before.index + 1, digest=before.digest)
        self._commit([SignHead(epoch, head.hash, made)])
        message = verifier_message(head.encoded, self._clock_ms)
        self._commit(
            [
                _ratification(head.encoded, Ratification(self._clock_ms, (v.key.signature(message),)))
                for v in self._ground.verifiers
            ]
        )

    def _commit(
        self,
        given: Sequence[Command],
        parts: Sequence[bytes] = (),
        rows: dict[bytes, bytes | None] | None = None,
    ) -> None:
        if not given:
            return
        encoded = commands.encode_envelope(
            replica=self._signer.key_id,
            time_ms=self._clock_ms,
            commands=[commands.encode_command(command) for command in given],
        )
        payload = commands.encode_log_entry(encoded, self._signer.sign_envelope(encoded), parts)
        outcome = apply(self._store, self._machine, self._state, self._position, payload)
        refused = [verdict for verdict in outcome.verdicts if verdict is not Code.APPLIED]
        if refused:
            raise RuntimeError(f"the machine refused what should be lawful: {refused[0].name}")
        self._store.write({**outcome.writes, **(rows or {})})
        self._state, self._position = outcome.state, outcome.position
        self._payloads.append(payload)


def _ratification(head: bytes, made: Ratification) -> AddRatification:
    return AddRatification(encoding.decode_signed_head(encoding.encode_signed_head(head, [made])))


async def _append(folder: Path, first: int, payloads: Sequence[bytes]) -> None:
    log = await trio.to_thread.run_sync(open_local_log, folder, commands.public_part)
    try:
        await log.start(first)
        for payload in payloads:
            await log.propose(payload)
    finally:
        await log.stop()
