"""Where a user's files lie: the XDG folders, or all below E2EKS_HOME; and the settings file."""

from __future__ import annotations

import os.path
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from verifier import files
from verifier.errors import ConfigError

SETTINGS_BYTES = 64 * 1024
_FOLDER = "e2eks"


@dataclass(frozen=True, slots=True)
class Places:
    """`config` can be published, `data` holds secrets and evidence, `state` what was seen."""

    config: Path
    data: Path
    state: Path

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Places:
        """E2EKS_HOME if set, else the XDG folders of the user. Raises ConfigError."""
        if own := environ.get("E2EKS_HOME"):
            home = Path(os.path.expanduser(own))
            return cls(home, home, home)
        try:
            home = Path(environ.get("HOME") or Path.home())
        except RuntimeError:
            raise ConfigError("this user has no home folder; set HOME, or E2EKS_HOME") from None

        def xdg(name: str, default: str) -> Path:
            value = environ.get(name, "")
            return (Path(value) if value.startswith("/") else home / default) / _FOLDER

        return cls(
            config=xdg("XDG_CONFIG_HOME", ".config"),
            data=xdg("XDG_DATA_HOME", ".local/share"),
            state=xdg("XDG_STATE_HOME", ".local/state"),
        )

    @property
    def settings(self) -> Path:
        return self.config / "config.toml"

    @property
    def contexts(self) -> Path:
        return self.config / "contexts"

    @property
    def identities(self) -> Path:
        return self.data / "identities"

    @property
    def revocations(self) -> Path:
        return self.data / "revocations"

    @property
    def evidence(self) -> Path:
        return self.data / "evidence"

    @property
    def pins(self) -> Path:
        return self.state / "pins"


_KEYS = {"context": str, "output": str, "timeout": str}


def read_settings(path: Path, *, required: bool) -> dict[str, str]:
    """The settings file: `context`, `output`, `timeout`, all texts. Raises ConfigError for unknown keys."""
    data = files.find_file(path, SETTINGS_BYTES, "settings file")
    if data is None:
        if required:
            raise ConfigError(f"there is no {path}; write it, or leave out -c")
        return {}
    try:
        table = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    for key, value in table.items():
        if key not in _KEYS:
            raise ConfigError(f"{path}: unknown key {key!r}; known are {', '.join(_KEYS)}")
        if not isinstance(value, _KEYS[key]):
            raise ConfigError(f"{path}: {key} must be a text in quotes")
    return table
