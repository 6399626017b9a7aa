"""Which engine keeps a replica's log, and in which folder of its data. Each engine has a folder of its own,
so that one never reads what another wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from keyserver.cluster import ETCD, LOCAL, QUORUM_MS, RAFT
from keyserver.config import Config
from keyserver.exits import Unreachable
from keyserver.machine import commands
from replication.interface import ReplicatedLog
from replication.local import open_local_log
from replication.types import NoLeader, TlsFilesRefused
from verifier.errors import ConfigError

Refusals = Callable[[str, str], None]  # address and reason of somebody turned away at the replication port


@dataclass(frozen=True, slots=True)
class Engine:
    """How to open a log: its folder in the data, and `open(folder, create)`, which raises StorageError, and
    ConfigError for what only the engine knows to be a mistake.
    """

    name: str
    folder: str
    open: Callable[[Path, bool], ReplicatedLog]


def _open_local(folder: Path, create: bool) -> ReplicatedLog:
    return open_local_log(folder, commands.public_part, create=create)


LOCAL_ENGINE = Engine(LOCAL, "log", _open_local)


def engine_of(config: Config, refused: Refusals = lambda _address, _reason: None) -> Engine:
    """The configured engine; nothing is opened yet, and no port before the log is started."""

    def open_raft(folder: Path, create: bool) -> ReplicatedLog:
        with _mistakes_named(config):
            return _open_raft(config, folder, create, refused)

    def open_etcd(folder: Path, create: bool) -> ReplicatedLog:
        with _mistakes_named(config):
            return _open_etcd(config, folder, create)

    engines = (LOCAL_ENGINE, Engine(RAFT, "raft", open_raft), Engine(ETCD, "etcd", open_etcd))
    return next(engine for engine in engines if engine.name == config.replication)


@contextmanager
def _mistakes_named(config: Config) -> Iterator[None]:
    try:
        yield
    except (ValueError, TlsFilesRefused) as error:
        raise ConfigError(f"{config.path}: {error}") from None


def _open_raft(config: Config, folder: Path, create: bool, refused: Refusals) -> ReplicatedLog:
    from replication.raft.events import Timing
    from replication.raft.log import open_raft_log

    assert config.cluster is not None
    timing = config.cluster.timing
    return open_raft_log(
        folder,
        commands.public_part,
        member=config.replica_name,
        members={name: row.replication for name, row in config.cluster.members.items()},
        listen=config.listen.replication,
        tls=config.cluster.tls,
        timing=Timing(
            election_min_s=timing.election_min_ms / 1000,
            election_max_s=timing.election_max_ms / 1000,
            heartbeat_s=timing.heartbeat_ms / 1000,
            quorum_s=QUORUM_MS / 1000,
        ),
        create=create,
        on_refused=refused,
    )


def _open_etcd(config: Config, folder: Path, create: bool) -> ReplicatedLog:
    from replication.etcd.log import open_etcd_log

    assert config.cluster is not None
    assert config.etcd is not None
    return open_etcd_log(
        folder,
        commands.public_part,
        member=config.replica_name,
        replicas=tuple(config.cluster.members),
        endpoints=config.etcd.endpoints,
        tls=config.etcd.tls,
        prefix=config.etcd.prefix,
        quota_bytes=config.etcd.quota_bytes,
        create=create,
    )


def other_engines_folder(data: Path, engine: Engine) -> str:
    """The folder of another engine's log in the data, or "" if there is none."""
    folders = {"log", "raft", "etcd"} - {engine.folder}
    return next((name for name in sorted(folders) if (data / name).is_dir()), "")


def require_engine(data: Path, engine: Engine) -> None:
    """Raises ConfigError for data whose log another engine keeps."""
    found = other_engines_folder(data, engine)
    if found and not (data / engine.folder).is_dir():
        raise ConfigError(
            f'{data} holds the log of another engine, in {data / found}, but replication is "{engine.name}". '
            "Set it back, or begin with an empty data folder. Nothing was changed"
        )


def renew_tls(log: ReplicatedLog) -> None:
    """Let an engine that has links read their TLS files again. Raises ReplicationError; nothing changes."""
    renew: Callable[[], None] | None = getattr(log, "renew_tls", None)
    if renew is not None:
        renew()


def forget_in_etcd(config: Config, name: str) -> dict[str, int]:
    """How far each replica has stored the log that etcd keeps, after one is forgotten ("": none).

    Raises ConfigError, also for a name that etcd does not know, and Unreachable.
    """
    from replication.etcd.operators import NoSuchReplica, forget_replica, replicas_in_etcd

    etcd = config.etcd
    if etcd is None:
        raise ConfigError(f'{config.path}: replication is "{config.replication}", so nothing is kept by etcd')
    try:
        if name:
            forget_replica(etcd.endpoints, etcd.tls, etcd.prefix, name)
        return dict(replicas_in_etcd(etcd.endpoints, etcd.tls, etcd.prefix))
    except NoSuchReplica as error:
        raise ConfigError(str(error)) from None
    except NoLeader as error:
        raise Unreachable(str(error)) from None
    except TlsFilesRefused as error:
        raise ConfigError(str(error)) from None
