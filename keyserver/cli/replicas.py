"""`keyserver replicas`: who the replicas are, and how one takes another's place."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from keyserver.cli.command_line import (
    Commands,
    config_option,
    configs_option,
    examples,
    output_option,
    path_option,
    show,
)

if TYPE_CHECKING:
    from keyserver.config import Config
    from keyserver.replica_change import PresentSet, Proposed

DAY_MS = 24 * 3_600_000
DIGITS_LEAST = 8  # of a key id that stands for the whole

change_option = path_option(
    "--file", "file", required=True, metavar="FILE", help="Where the change is written."
)
days_option = click.option(
    "--days", type=click.IntRange(1, 365), default=7, show_default=True, help="How long it may be approved."
)


@click.group(
    cls=Commands,
    epilog=examples(
        "keyserver replicas replace r2 PUBLIC-KEY --file change.json",
        "keyserver replicas approve change.json",
        "keyserver replicas submit change.json",
    ),
)
def replicas() -> None:
    """List the replicas; add, replace, remove one.

    A change is a file: made by one of replace, add, remove; approved with `approve` by a majority of the
    present replicas' keys and by the key that is added, each where it lies; then submitted to any replica.
    """


@replicas.command("list", epilog=examples("keyserver replicas list -o json"))
@config_option
@output_option
def list_replicas(config_file: Path, output: str) -> None:
    """Ask the running replica whose signatures count."""
    told = _told(_config(config_file))
    from keyserver.replica_change import present_policy

    keys = present_policy(told).keys
    rows = [{"key_id": key.hex(), "member": told.names.get(key.hex(), "")} for key in keys]
    record = {
        "schema": "e2eks.replica-set/1",
        "epoch": told.epoch,
        "pending": told.pending,
        "majority": len(keys) // 2 + 1,
        "replicas": rows,
    }
    show(record, output)


@replicas.command(
    "new", epilog=examples("keyserver replicas new r4=d.example.org --ca ca -c replicas/r1/keyserver.toml")
)
@click.argument("replica", metavar="NAME=HOST")
@config_option
@path_option("--ca", "authorities", required=True, help="The folder ca that `keyserver init` made.")
@click.option("--port-base", type=click.IntRange(1, 65529), metavar="N", help="Ports as in `keyserver init`.")
@output_option
def new(replica: str, config_file: Path, authorities: Path, port_base: int | None, output: str) -> None:
    """Make the folder of a replica that is to join, with a key of its own, beside the configured one's."""
    from datetime import UTC, datetime

    from keyserver.config import load_config
    from keyserver.installation.new_replica import new_replica
    from keyserver.installation.plan import Ports, Replica

    name, equals, host = replica.partition("=")
    if not equals:
        raise click.BadParameter(f"{replica!r} is not NAME=HOST", param_hint="NAME=HOST")
    ports = Ports.from_base(port_base) if port_base is not None else None
    made = new_replica(load_config(config_file), Replica(name, host, ports), authorities, datetime.now(UTC))
    config = load_config(made)
    assert config.cluster is not None
    member = config.cluster.members[name]
    click.echo(f"✓ {made.parent}", err=True)
    click.echo(
        "  next: name it in every other replica's configuration, and restart them one by one:", err=True
    )
    click.echo(
        f"        keyserver replicas enlist {name} --peers {member.peers} --replication {member.replication} "
        "-c FILE...",
        err=True,
    )
    record = {
        "schema": "e2eks.new-replica/1",
        "replica": name,
        "config": str(made),
        "public_key": _own_key(config).public_key.hex(),
        "peers": member.peers,
        "replication": member.replication,
    }
    show(record, output)


@replicas.command(
    "enlist",
    epilog=examples(
        "keyserver replicas enlist r4 --peers d.example.org:4629 --replication d.example.org:9807"
    ),
)
@click.argument("name")
@click.option("--peers", required=True, metavar="HOST:PORT", help="Where the others reach its peers' port.")
@click.option("--replication", default="", metavar="HOST:PORT", help="And its replication port (raft).")
@configs_option
def enlist(name: str, peers: str, replication: str, config_files: tuple[Path, ...]) -> None:
    """Name a member in [cluster.members]. Takes effect with the restart of each replica."""
    from keyserver.cluster import MemberTable
    from keyserver.config import load_config
    from keyserver.installation import member_tables

    for path in config_files:
        member_tables.enlist(load_config(path), name, MemberTable(peers, replication))
        click.echo(f"✓ {path} names {name}", err=True)
    click.echo("  next: restart these replicas, one after the other", err=True)


@replicas.command("drop", epilog=examples("keyserver replicas drop r2 -c replicas/r1/keyserver.toml"))
@click.argument("name")
@configs_option
def drop(name: str, config_files: tuple[Path, ...]) -> None:
    """Name a member no more in [cluster.members]. Takes effect with the restart of each replica."""
    from keyserver.config import load_config
    from keyserver.installation import member_tables

    for path in config_files:
        member_tables.drop(load_config(path), name)
        click.echo(f"✓ {path} does not name {name}", err=True)
    click.echo("  next: restart these replicas, one after the other", err=True)


@replicas.command("forget", epilog=examples("keyserver replicas forget r2"))
@click.argument("name", default="")
@config_option
@output_option
def forget(name: str, config_file: Path, output: str) -> None:
    """With etcd: wait no more for a dead replica before old entries are trimmed.

    Without NAME: how far each replica has stored the log.
    """
    from keyserver.engines import forget_in_etcd

    stored = forget_in_etcd(_config(config_file), name)
    if name:
        click.echo(f"✓ {name} is forgotten", err=True)
    show({"schema": "e2eks.etcd-replicas/1", "stored": stored}, output)


@replicas.command("hand-over", epilog=examples("keyserver replicas hand-over -c replicas/r1/keyserver.toml"))
@config_option
@output_option
def hand_over(config_file: Path, output: str) -> None:
    """Let another replica lead, if the running one does: nobody waits for an election."""
    leader = _post(_config(config_file), "/hand-over")["leader"]
    click.echo(f"✓ {leader or 'nobody'} leads", err=True)
    show({"schema": "e2eks.hand-over/1", "leader": leader}, output)


# The change


@replicas.command("add", epilog=examples("keyserver replicas add PUBLIC-KEY --file change.json"))
@click.argument("public_key", metavar="PUBLIC-KEY")
@config_option
@change_option
@days_option
@output_option
def add(public_key: str, config_file: Path, file: Path, days: int, output: str) -> None:
    """Begin a change that adds a key (hex, as `replicas new` and `keys rekey` print it)."""
    _begin(config_file, file, days, output, add_key=public_key, remove_key="")


@replicas.command("replace", epilog=examples("keyserver replicas replace r2 PUBLIC-KEY --file change.json"))
@click.argument("old", metavar="OLD")
@click.argument("public_key", metavar="PUBLIC-KEY")
@config_option
@change_option
@days_option
@output_option
def replace(old: str, public_key: str, config_file: Path, file: Path, days: int, output: str) -> None:
    """Begin a change that puts a key in the place of OLD: a member's name, or the beginning of its key id."""
    _begin(config_file, file, days, output, add_key=public_key, remove_key=old)


@replicas.command("remove", epilog=examples("keyserver replicas remove r2 --file change.json"))
@click.argument("old", metavar="OLD")
@config_option
@change_option
@days_option
@output_option
def remove(old: str, config_file: Path, file: Path, days: int, output: str) -> None:
    """Begin a change that takes OLD away: a member's name, or the beginning of its key id."""
    _begin(config_file, file, days, output, add_key="", remove_key=old)


@replicas.command(
    "approve", epilog=examples("keyserver replicas approve change.json -c replicas/r1/keyserver.toml")
)
@click.argument("file", type=click.Path(path_type=Path))
@config_option
@output_option
def approve(file: Path, config_file: Path, output: str) -> None:
    """Sign a change with the configured replica's key. Asks nobody: look at what is shown first."""
    from keyserver import replica_change
    from verifier.files import replace_file

    config = _config(config_file)
    proposed = replica_change.read_files([file], config.realm)
    proposed = replica_change.approve(proposed, config.realm, _own_key(config))
    replace_file(file, replica_change.encode_file(proposed, config.realm))
    click.echo(f"✓ approved by {config.replica_name}", err=True)
    show(_record(config, proposed), output)


@replicas.command("submit", epilog=examples("keyserver replicas submit change.json"))
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@config_option
@output_option
def submit(files: tuple[Path, ...], config_file: Path, output: str) -> None:
    """Give an approved change to the running replica; it takes effect with the next epoch."""
    from keyserver import replica_change
    from verifier.errors import Reason, Refused

    config = _config(config_file)
    proposed = replica_change.read_files(files, config.realm)
    record = _record(config, proposed)
    if not record["complete"]:
        raise Refused(
            Reason.NOT_AUTHORIZED,
            f"{record['missing']} more of the present replicas must approve it, and these added keys: "
            f"{' '.join(record['unconfirmed']) or 'none'}",
        )
    said = _post(config, "/replicas", replica_change.encode_file(proposed, config.realm))
    click.echo(f"✓ accepted; it takes effect with the epoch after {said['epoch']}", err=True)
    show({**record, "epoch": said["epoch"]}, output)


def _begin(config_file: Path, file: Path, days: int, output: str, *, add_key: str, remove_key: str) -> None:
    from keyserver import replica_change
    from verifier.files import write_new

    config = _config(config_file)
    told = _told(config)
    proposed = replica_change.propose(
        told,
        add=_public_key(add_key) if add_key else None,
        remove=_key_id(told, remove_key) if remove_key else None,
        not_after_ms=told.log_time_ms + days * DAY_MS,
    )
    write_new(file, replica_change.encode_file(proposed, config.realm))
    record = _record(config, proposed)
    click.echo(f"✓ {file}", err=True)
    click.echo(f"  next: {record['missing']} of the present replicas approve it", err=True)
    for key in record["unconfirmed"]:
        click.echo(f"        and the added key {key}", err=True)
    show(record, output)


def _record(config: Config, proposed: Proposed) -> dict[str, Any]:
    state = proposed.approvals(config.realm)
    return {
        "schema": "e2eks.replica-change/1",
        "adds": [key.hex() for key in proposed.added],
        "removes": [key.hex() for key in proposed.removed],
        "replicas": len(proposed.change.policy.keys),
        "not_after_ms": proposed.change.not_after_ms,
        "approved": sorted(key.hex() for key in state.valid),
        "missing": state.missing,
        "unconfirmed": [key.hex() for key in state.unconfirmed],
        "complete": state.complete,
    }


def _config(path: Path) -> Config:
    from keyserver.config import load_config

    return load_config(path)


def _told(config: Config) -> PresentSet:
    from keyserver.replica_change import decode_present

    return decode_present(_answer(config, "GET", "/replicas"))


def _post(config: Config, path: str, body: bytes = b"") -> dict[str, Any]:
    import json

    said: dict[str, Any] = json.loads(_answer(config, "POST", path, body))
    return said


def _answer(config: Config, method: str, path: str, body: bytes = b"") -> bytes:
    """What the running replica answers. Raises Refused with its reason, Unreachable if it gives none."""
    import json

    from keyserver.exits import Unreachable
    from keyserver.operator_socket import ask
    from verifier.errors import Reason, Refused

    code, answer = ask(config.data, method, path, body)
    if code == 200:
        return answer
    try:
        said = json.loads(answer)
        refusal = Refused(Reason(said["reason"]), str(said["what"]))
    except (ValueError, KeyError, TypeError):
        what = f"the replica in {config.data} answers with status {code} and no reason"
        raise Unreachable(f"{what}. Is it of this version? Look into its log") from None
    raise refusal


def _own_key(config: Config) -> Any:
    from verifier.crypto.signatures import SigningKey
    from verifier.files import read_secret

    return SigningKey(read_secret(config.head_key))


def _public_key(text: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise click.BadParameter(f"{text!r} is not 32 bytes in hexadecimal", param_hint="PUBLIC-KEY")
    return key


def _key_id(told: PresentSet, text: str) -> bytes:
    """The present key id that a member's name, or the beginning of a key id, stands for."""
    from keyserver.replica_change import present_policy

    keys = [key.hex() for key in present_policy(told).keys]
    found = [key for key in keys if told.names.get(key) == text]
    found = found or [key for key in keys if len(text) >= DIGITS_LEAST and key.startswith(text.lower())]
    if len(found) != 1:
        shown = ", ".join(f"{key[:16]} ({told.names.get(key, 'unknown')})" for key in keys)
        raise click.BadParameter(f"{text!r} is not one of {shown}", param_hint="OLD")
    return bytes.fromhex(found[0])
