"""`keyserver keys`. Imports nothing but click at the top: see commands.py."""

from __future__ import annotations

from pathlib import Path

import click

from keyserver.cli.command_line import Commands, config_option, examples, output_option, show


@click.group(cls=Commands, epilog=examples("keyserver keys rekey -c replicas/r1/keyserver.toml"))
def keys() -> None:
    """Look after a replica's keys."""


@keys.command(epilog=examples("keyserver keys rekey -c replicas/r1/keyserver.toml"))
@config_option
@click.option("--retire-healthy-key", is_flag=True, help="Although nothing is known to speak against it.")
@click.option(
    "--floor",
    type=click.IntRange(min=0),
    default=0,
    metavar="EPOCH",
    help="The old key may have signed up to here, as you know from elsewhere.",
)
@output_option
def rekey(config_file: Path, retire_healthy_key: bool, floor: int, output: str) -> None:
    """Give a stopped replica in quarantine a new key and register.

    For a replica whose register is lost, older than its data, or ahead of it; whose data was restored; or
    whose key was used elsewhere. The old key is set aside as *.retired-TIME and never signs again. The new
    one signs nothing before the realm has taken it in, and a realm of one replica cannot: there the end of
    the key is the end of the realm.
    """
    from datetime import UTC, datetime

    from keyserver.config import load_config
    from keyserver.quarantine import what_follows
    from keyserver.rekey import rekey as renew

    config = load_config(config_file)
    done = renew(config, datetime.now(UTC), healthy=retire_healthy_key, floor=floor)
    click.echo(f"  why: {done.why}", err=True)
    for path in done.retired:
        click.echo(f"✓ set aside {path}", err=True)
    for name, epoch in done.seen.items():
        said = (
            f"has ratified up to epoch {epoch}" if epoch is not None else "! did not answer or shows nothing"
        )
        click.echo(f"  verifier {name} {said}", err=True)
    click.echo(f"✓ {config.replica_name} has a new key; it signs nothing up to epoch {done.floor}", err=True)
    click.echo(f"  next: {what_follows(done.state)}", err=True)
    record = {
        "schema": "e2eks.rekeyed/1",
        "replica": config.replica_name,
        "why": done.why,
        "old_key_id": done.old_key_id.hex() if done.old_key_id else "",
        "key_id": done.key_id.hex(),
        "public_key": done.public_key.hex(),
        "floor": done.floor,
        "epoch": done.state.epoch,
        "replicas": len(done.state.policy.keys),
        "verifiers": done.seen,
        "retired": [str(path) for path in done.retired],
    }
    show(record, output)
