"""The [cluster.members.NAME] tables of a configuration file, changed as text: an operator's words stay.

Every change is read back as a whole configuration before the file is replaced, so a file is never left that
would not start.
"""

from __future__ import annotations

import re
from pathlib import Path

from keyserver.cluster import MemberTable
from keyserver.config import CONFIG_BYTES, Config, load_config
from keyserver.installation.plan import REPLICA_NAME
from verifier.errors import ConfigError
from verifier.files import read_file, replace_file

# To its last setting: words behind that are about the next table. One blank line goes along.
_TABLE = (
    r"(?m)^\[cluster\.members\.{name}\][^\n]*\n"
    r"(?:(?:[ \t]*(?:#[^\n]*)?\n)*[ \t]*[^\[#\s][^\n]*(?:\n|\Z))*(?:[ \t]*\n)?"
)


def enlist(config: Config, name: str, member: MemberTable) -> None:
    """Name one member more, or another address of a member. Raises ConfigError; the file stands then."""
    if not REPLICA_NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is not a replica's name: use a-z, 0-9 and - inside, at most 32")
    _replace(config, with_table(_text(config), name, member), name, wanted=True)


def drop(config: Config, name: str) -> None:
    """Name one member less. Raises ConfigError; the file stands then."""
    if config.cluster is None or name not in config.cluster.members:
        raise ConfigError(f"{config.path} names no member {name}")
    if name == config.replica_name:
        raise ConfigError(f"{config.path} is that of {name} itself: stop it, and set its folder aside")
    _replace(config, without_table(_text(config), name), name, wanted=False)


def with_table(text: str, name: str, member: MemberTable) -> str:
    """The text with the table of a member, in place of the one it may have."""
    rows = [f"[cluster.members.{name}]", f'peers = "{member.peers}"']
    if member.replication:
        rows.append(f'replication = "{member.replication}"')
    return without_table(text, name).rstrip("\n") + "\n\n" + "\n".join(rows) + "\n"


def without_table(text: str, name: str) -> str:
    """The text without the table of a member, if it has one."""
    return re.sub(_TABLE.replace("{name}", re.escape(name)), "", text)


def _text(config: Config) -> str:
    return read_file(config.path, CONFIG_BYTES, "configuration").decode("utf-8")


def _replace(config: Config, text: str, name: str, *, wanted: bool) -> None:
    draft = config.path.with_name(config.path.name + ".draft")
    try:
        replace_file(draft, text.encode("utf-8"))
        made = load_config(draft)
        if made.cluster is None or (name in made.cluster.members) is not wanted:
            raise ConfigError(f"the tables of {config.path} are written in another way. Edit them by hand")
    finally:
        Path(draft).unlink(missing_ok=True)
    replace_file(config.path, text.encode("utf-8"))
