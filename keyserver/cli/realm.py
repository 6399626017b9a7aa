"""`keyserver realm`: what clients pin, and the verifiers the realm lists."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

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
    from verifier.types import Realm


@click.group(cls=Commands)
def realm() -> None:
    """Show the realm, list its verifiers."""


@realm.command("show", epilog=examples("keyserver realm show -c replicas/r1/keyserver.toml -o json"))
@config_option
@path_option("--realm-file", help="A realm.json, instead of the configuration's.")
@output_option
def realmshow(config_file: Path, realm_file: Path | None, output: str) -> None:
    """Print what clients know and pin."""
    from verifier.realm import fingerprint

    shown = _realm(config_file, realm_file)
    record = {
        "schema": "e2eks.realm/1",
        "realm": shown.name,
        "fingerprint": fingerprint(shown),
        "realm_hash": shown.hash.hex(),
        "domains": list(shown.domains),
        "addresses": list(shown.addresses),
        "epoch_ttl_ms": shown.epoch_ttl_ms,
        "replicas": [key_id.hex() for key_id in shown.genesis_policy.keys],
        "verifiers": [
            {"name": v.name, "key_id": v.key_id.hex(), "address": v.address} for v in shown.verifiers
        ],
    }
    show(record, output)


@realm.command("fingerprint", epilog=examples("keyserver realm fingerprint --realm-file realm.json"))
@config_option
@path_option("--realm-file", help="A realm.json, instead of the configuration's.")
def realm_fingerprint(config_file: Path, realm_file: Path | None) -> None:
    """Print the fingerprint that people compare and pin."""
    from verifier.realm import fingerprint

    click.echo(fingerprint(_realm(config_file, realm_file)))


@realm.command(
    "add-verifier",
    epilog=examples(
        "keyserver realm add-verifier a.json", "keyserver realm add-verifier --replace a new.json"
    ),
)
@click.argument(
    "info_files", metavar="INFO-FILE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@configs_option
@click.option("--replace", default="", metavar="NAME", help="Put it in the place of this listed verifier.")
@output_option
def realm_add_verifier(
    info_files: tuple[Path, ...], config_files: tuple[Path, ...], replace: str, output: str
) -> None:
    """List verifiers in realm.json and let them push ratifications.

    INFO-FILE is what `verifier init` or `verifier rekey` made. Every replica's files must list it: give all
    their -c, or run this on each host. Changes the realm's fingerprint: publish realm.json anew, then restart
    the replicas, one after the other.
    """
    from keyserver.config import load_config
    from keyserver.installation.setup import add_verifiers
    from keyserver.verifier_list import read_verifier_info
    from verifier.realm import fingerprint

    config, *others = [load_config(path) for path in config_files]
    infos = [read_verifier_info(path) for path in info_files]
    changed = add_verifiers(config, infos, replace=replace, others=others)
    click.echo(f"✓ {config.realm_file} lists {len(changed.verifiers)} verifiers", err=True)
    click.echo("  next: publish realm.json anew and restart each replica", err=True)
    record = {
        "schema": "e2eks.realm-change/1",
        "fingerprint": fingerprint(changed),
        "verifiers": [verifier.name for verifier in changed.verifiers],
    }
    show(record, output)


def _realm(config_file: Path, realm_file: Path | None) -> Realm:
    from keyserver.config import load_config
    from verifier.config_file import read_realm

    return read_realm(realm_file)[0] if realm_file is not None else load_config(config_file).realm
