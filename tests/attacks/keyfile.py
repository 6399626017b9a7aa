"""Key files and registers: open to others, not what they should be, cut, or somebody else's."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from operators import certificate_pem, set_up, verifier_file

from attacks.surface import Surface
from keyserver.config import check_files, load_config
from keyserver.installation.setup import SetUp, add_verifiers
from keyserver.signer import load_signer
from keyserver.verifier_list import read_verifier_info
from verifier.client.identity import Identities
from verifier.errors import E2eksError
from verifier.files import read_secret
from verifier.signonce import Row, SignOnceRegister

GOOD = bytes(range(32)).hex() + "\n"
USER = "alice@example.test"
OWNER, OTHER_OWNER = b"\x01" * 32, b"\x02" * 32
PRIVATE = 0o600


class Keyfile(Surface):
    """Every input is a path in the surface's own folder."""

    _realm_folder: SetUp | None = None  # of the realm that an info file is made for

    @property
    def _path(self) -> Path:
        """A name not used before."""
        return self.folder / f"file-{len(list(self.folder.iterdir()))}"

    def _written(self, data: bytes, mode: int = PRIVATE) -> Path:
        path = self._path
        path.write_bytes(data)
        path.chmod(mode)
        return path

    # One secret in a file, as replicas and verifiers keep it

    def make_secret(self, mode: int = PRIVATE, newline: bool = True) -> Path:
        return self._written((GOOD if newline else GOOD.strip()).encode(), mode)

    def make_text(self, text: str, times: int = 1) -> Path:
        return self._written(text.encode() * times)

    def make_raw_key(self, length: int) -> Path:
        """The key itself in place of its digits."""
        return self._written(bytes(range(length)))

    def make_link(self, to: str) -> Path:
        targets: Mapping[str, Callable[[], Path]] = {
            "a private file": self.make_secret,
            "a file that others may read": lambda: self.make_secret(mode=0o644),
            "nothing": lambda: self.folder / "nothing",
            "a device": lambda: Path("/dev/zero"),
        }
        target, path = targets[to](), self._path
        path.symlink_to(target)
        return path

    def make_folder(self) -> Path:
        path = self._path
        path.mkdir(mode=0o700)
        return path

    def make_pipe(self) -> Path:
        """Nobody writes into it: who opens it to read waits for ever."""
        path = self._path
        os.mkfifo(path, PRIVATE)
        return path

    def judge_replica(self, path: Path) -> str:
        return "read" if read_secret(path) else "empty"

    def judge_verifier(self, path: Path) -> str:
        return "read" if read_secret(path, "key") else "empty"

    # A user's identity

    def make_identity(self, mode: int = PRIVATE, **changes: str) -> Path:
        """Alice's identity; `changes` replace one text in the file by another."""
        identities = Identities(self.folder / "identities")
        if identities.find(USER) is None:
            identities.make(USER, lambda count: bytes(range(count)))
        path = identities.path(USER)
        text = path.read_text()
        for old, new in changes.items():
            assert old in text, "there is nothing to replace"
            text = text.replace(old, new)
        return self._user_file(text.encode(), mode)

    def make_identity_of_bytes(self, text: str, times: int = 1) -> Path:
        return self._user_file(text.encode() * times, PRIVATE)

    def make_identity_pipe(self) -> Path:
        folder = self._path
        path = Identities(folder).path(USER)
        path.parent.mkdir()
        os.mkfifo(path, PRIVATE)
        return folder

    def _user_file(self, data: bytes, mode: int) -> Path:
        """A folder of identities with one file in alice's place."""
        folder = self._path
        path = Identities(folder).path(USER)
        path.parent.mkdir()
        path.write_bytes(data)
        path.chmod(mode)
        return folder

    def judge_identity(self, folder: Path) -> str:
        identity = Identities(folder).load(USER)
        return f"{len(identity.seeds)} key"

    # A sign-once register

    def make_register(self, owner: str = "ours", cut: int = 0, flip: int = -1, zeros: int = 0) -> Path:
        """A register with three signatures, spoiled at its end or in one byte."""
        path = self._path
        register = SignOnceRegister.create(path, key_id=OWNER if owner == "ours" else OTHER_OWNER)
        for epoch in (1, 2, 3):
            row = Row(epoch, bytes([epoch]) * 32, epoch, epoch, bytes(32), bytes(64))
            register.sign_once(epoch, row.head_hash, lambda row=row: row)  # type: ignore[misc]
        register.close()
        data = bytearray(path.read_bytes())
        if flip >= 0:
            data[flip] ^= 1
        path.write_bytes(bytes(data[: len(data) - cut]) + bytes(zeros))
        return path

    def make_register_without_a_row(self) -> Path:
        """The middle row cut out, so that its epoch could be signed again."""
        path = self.make_register()
        data = path.read_bytes()
        size = (len(data) - len(self._empty_register())) // 3
        start = len(data) - 2 * size
        path.write_bytes(data[:start] + data[start + size :])
        return path

    def _empty_register(self) -> bytes:
        path = self._path
        SignOnceRegister.create(path, key_id=OWNER).close()
        return path.read_bytes()

    def make_no_register(self) -> Path:
        return self._path

    def make_empty_file(self) -> Path:
        return self._written(b"")

    def judge_register(self, path: Path) -> str:
        register = SignOnceRegister.open(path, key_id=OWNER)
        try:
            newest = register.newest()
            return f"newest {newest.epoch if newest else 0}"
        finally:
            register.close()

    # A replica's folder

    def make_replica(self, **changes: Any) -> Folder:
        """A realm set up by its operator's command, then one thing changed."""
        made = set_up(self._path)
        folder = made.configs[0].parent
        for name, mode in changes.items():
            (folder / name.replace("_", ".")).chmod(mode)
        return Folder(made.configs[0], folder)

    def make_replica_with_keys_swapped(self) -> Folder:
        """The head key and the VRF key in each other's place: one key would serve two purposes."""
        made = self.make_replica()
        head, vrf = (made.path / name for name in ("head.key", "vrf.key"))
        first, second = head.read_bytes(), vrf.read_bytes()
        head.write_bytes(second)
        vrf.write_bytes(first)
        return made

    def make_replica_with(self, file: str) -> Folder:
        """One file taken from another realm's replica."""
        made, other = self.make_replica(), self.make_replica()
        (made.path / file).write_bytes((other.path / file).read_bytes())
        return made

    # What a verifier's operator hands over

    def make_info(self, tls: str = "", key: str = "", **changes: str) -> Path:
        """A verifier info file; `tls` and `key` name another certificate or key than its own."""
        folder = self._path
        folder.mkdir()
        certificates: Mapping[str, Callable[[], str]] = {
            "of an authority": lambda: certificate_pem("v1", authority=True),
            "of two": lambda: certificate_pem("v1") + certificate_pem("v2"),
            "of nobody": lambda: "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
            "missing": lambda: "",
        }
        if tls:
            changes["tls_certificate_pem"] = certificates[tls]()
        if key == "the replica's":
            self._realm_folder = set_up(self._path)
            config = load_config(self._realm_folder.configs[0])
            changes["public_key"] = next(iter(config.realm.genesis_policy.keys.values())).hex()
        return verifier_file(folder, "v1", **changes).path

    def make_info_of_bytes(self, text: str, times: int = 1) -> Path:
        return self._written(text.encode() * times)

    def judge_info(self, path: Path) -> str:
        """Whether `keyserver realm add-verifier` lists it; the realm's file is untouched if not."""
        config = load_config((self._realm_folder or set_up(self._path)).configs[0])
        before = config.realm_file.read_bytes()
        try:
            add_verifiers(config, [read_verifier_info(path)])
        except E2eksError:
            assert config.realm_file.read_bytes() == before, "a refused verifier changed the realm"
            raise
        return "listed"

    def judge_folder(self, made: Folder) -> str:
        config = load_config(made.config)
        check_files(config)
        signer = load_signer(config)
        signer.close()
        return "quarantined" if signer.quarantined else "signs"


class Folder(NamedTuple):
    config: Path
    path: Path
