"""`keyserver check`, also called verify-db. Imports nothing but click at the top: see commands.py."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from keyserver.cli.command_line import config_option, examples, output_option, show

FAULTS_FOUND = 1


@click.command(
    epilog=examples(
        "keyserver check -c replicas/r1/keyserver.toml",
        "keyserver check -o json | jq '.faults[] | .table'",
    )
)
@config_option
@output_option
def check(config_file: Path, output: str) -> None:
    """Replay the whole log and compare everything with it: rows, tree, history, heads, register.

    Works on a stopped replica, and on a running one without disturbing it. Changes nothing. Exit code 0: all
    is sound. 1: there are faults, each shown with its table, its key and the reason.
    """
    from keyserver.config import load_config
    from keyserver.copies.check_replica import check_replica

    config = load_config(config_file)
    checked = check_replica(config, progress())
    record = {
        **checked.report.record(),
        "realm": config.realm.name,
        "replica": config.replica_name,
        "running": checked.running,
    }
    show_report(record, output)


def show_report(record: Mapping[str, Any], output: str) -> None:
    """Print a report, and end with exit code 1 if it has faults."""
    faults = record["faults"]
    if output == "table":
        show({name: value for name, value in record.items() if name != "faults"}, output)
        for fault in faults:
            click.echo(f"✗ {fault['table']} {fault['key'] or '-'}: {fault['reason']}")
    else:
        show(record, output)
    if record["sound"]:
        click.echo("✓ everything is as the log makes it", err=True)
        return
    left_out = record["faults_found"] - len(faults)
    more = f", {left_out} of them not shown" if left_out else ""
    click.echo(f"✗ {record['faults_found']} faults{more}. Keep this disk as it is and run on", err=True)
    click.echo("  from another: keyserver backup restore, or set the replica up anew", err=True)
    click.get_current_context().exit(FAULTS_FOUND)


def progress() -> Callable[[int], None]:
    """Shows how far a check is, if somebody looks."""
    if not sys.stderr.isatty():
        return lambda _: None
    return lambda index: click.echo(f"\rreplayed {index} entries", err=True, nl=False)


verify_db = copy.copy(check)
verify_db.name, verify_db.hidden = "verify-db", True
