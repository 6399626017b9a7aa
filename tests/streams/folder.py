"""A verifier's folder, set up as `verifier init` does, and the parts of a daemon in it."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Self

from streams.build import START_MS, Stream

from verifier import realm as realms
from verifier.crypto import hashing
from verifier.daemon.config import Config, Times, load_config
from verifier.daemon.database import check_register, open_database, open_register
from verifier.daemon.outbox import Outbox, Ready
from verifier.daemon.setup import Plan, init
from verifier.daemon.state import load_state
from verifier.daemon.status import StatusFile
from verifier.daemon.step import apply_message
from verifier.daemon.transport import Credentials, Keyserver, PushTarget
from verifier.daemon.watch import Daemon, Parts
from verifier.files import read_secret
from verifier.types import Realm

FAST = Times(retry_min_ms=5, retry_max_ms=50, compare_interval_ms=50)


@dataclass
class VerifierFolder:
    """`init` done in `path`; addresses may be set later with `connect`."""

    path: Path
    name: str
    info: dict[str, str]

    @classmethod
    def make(
        cls, path: Path, realm: Realm, name: str = "v0", address: str = "127.0.0.1:4630"
    ) -> VerifierFolder:
        realm_file = path.with_name(f"{name}-realm.json")
        realm_file.write_bytes(realms.realm_json(realm))
        plan = Plan(name, address, "127.0.0.1:0", ("127.0.0.1:1",), ("127.0.0.1:1",))
        info = init(path, realm_file, plan, datetime.now(UTC))
        return cls(path, name, json.loads(info))

    @property
    def certificate(self) -> bytes:
        return self.info["tls_certificate_pem"].encode()

    @property
    def public_key(self) -> bytes:
        return bytes.fromhex(self.info["public_key"])

    @property
    def key_id(self) -> bytes:
        return hashing.key_id(self.public_key)

    @property
    def config_file(self) -> Path:
        return self.path / "verifier.toml"

    def connect(self, verification: str, push: str, *roots: bytes, extra: str = "") -> None:
        """Write the keyserver's addresses into the configuration, and TLS roots into the realm file."""
        text = self.config_file.read_text()
        head, _, tail = text.partition("[keyserver]")
        tail = tail[tail.index("[tls]") :]
        addresses = f'[keyserver]\nverification = ["{verification}"]\npush = ["{push}"]\n\n'
        self.config_file.write_text(head + addresses + tail + extra)
        realm = self.config().realm
        known = replace(realm, tls_roots_pem=tuple(root.decode() for root in roots))
        (self.path / "realm.json").write_bytes(realms.realm_json(known))

    def config(self) -> Config:
        return load_config(self.config_file)


class OpenVerifier:
    """Everything a run opens, with a clock of the test; closes like a process that ends."""

    def __init__(self, folder: VerifierFolder, *, now_ms: int = START_MS + 10_000) -> None:
        self.folder = folder
        self.now_ms = now_ms
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        config = self.folder.config()
        self.config = config
        with ExitStack() as stack:
            self.register = open_register(config.sign_once_register, self.folder.key_id)
            stack.callback(self.register.close)
            self.store = open_database(config.data, config.realm, self.folder.key_id)
            stack.callback(self.store.close)
            check_register(self.store, config.realm, self.register)
            seed = read_secret(config.key, "key")
            self.outbox = Outbox(self.store, self.register, seed, self.folder.key_id, lambda: self.now_ms)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def credentials(self) -> Credentials:
        roots = "\n".join(self.config.realm.tls_roots_pem).encode()
        return Credentials(roots, self.config.tls_certificate.read_bytes(), self.config.tls_key.read_bytes())

    def parts(self) -> Parts:
        credentials = self.credentials()
        return Parts(
            realm=self.config.realm,
            store=self.store,
            outbox=self.outbox,
            sources=[Keyserver(address, credentials) for address in self.config.verification],
            targets=[PushTarget(address, credentials, 30.0) for address in self.config.push],
            evidence=self.config.evidence,
            clock=lambda: self.now_ms,
            rng=Random(1),
            times=FAST,
            status=StatusFile(self.config.status, self.config.name),
        )

    def daemon(self) -> Daemon:
        return Daemon(self.parts())


def replay(opened: OpenVerifier, message: bytes) -> None:
    """Follow the steps of a message, which are valid."""
    state = load_state(opened.store, opened.config.realm)
    outcome = apply_message(opened.store, opened.config.realm, state, message)
    assert outcome.stop is None
    opened.store.write(outcome.writes)


def ratify(opened: OpenVerifier, number: int) -> bytes:
    """The ratification of an epoch that it owes, to be pushed."""
    owed = opened.outbox.ratify(number)
    assert isinstance(owed, Ready)
    return owed.push


def verifier_of(stream: Stream, path: Path) -> VerifierFolder:
    return VerifierFolder.make(path, stream.realm)
