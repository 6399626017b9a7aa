"""`keyserver backup`. Imports nothing but click at the top: see commands.py."""

from __future__ import annotations

from pathlib import Path

import click

from keyserver.cli.check import progress, show_report
from keyserver.cli.command_line import Commands, config_option, examples, output_option, path_option, show


@click.group(cls=Commands, epilog=examples("keyserver backup create -c keyserver.toml r1.e2eks"))
def backup() -> None:
    """Copy one replica's data into a file, verify such a file, restore it.

    A backup holds no key and no sign-once register, and a restored replica signs nothing until it has a new
    key. It does hold names and profiles: keep it encrypted, and delete it when it is older than erased users
    were promised.
    """


@backup.command(epilog=examples("keyserver backup create -c keyserver.toml /backups/r1-$(date +%F).e2eks"))
@click.argument("target", metavar="FILE", type=click.Path(path_type=Path))
@config_option
@output_option
def create(target: Path, config_file: Path, output: str) -> None:
    """Copy database and log, as they are at one log index, into a new FILE.

    Works on a stopped replica, and on a running one without disturbing it.
    """
    from keyserver.config import load_config
    from keyserver.copies.backup_create import create_backup

    config = load_config(config_file)
    manifest, digest = create_backup(config, target)
    click.echo(f"✓ {target} holds the replica as of log entry {manifest.applied_index}", err=True)
    click.echo(f"  next: keyserver backup verify {target}", err=True)
    record = {
        "schema": "e2eks.backup-created/1",
        "file": str(target),
        "bytes": target.stat().st_size,
        "sha256": digest,
        "realm": manifest.realm,
        "realm_hash": manifest.realm_hash,
        "replica": manifest.replica,
        "applied_index": manifest.applied_index,
        "state_digest": manifest.state_digest,
        "epoch": manifest.epoch,
    }
    show(record, output)


@backup.command(epilog=examples("keyserver backup verify r1.e2eks --realm-file realm.json -o json"))
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path))
@path_option("--realm-file", help="The realm it must be of. [default: the one it names]")
@output_option
def verify(source: Path, realm_file: Path | None, output: str) -> None:
    """Compare the hashes of FILE, then check its contents as `keyserver check` does.

    Exit code 0: all is sound. 1: the file is damaged, or what it holds has faults.
    """
    from keyserver.copies.backup_restore import verify_backup
    from verifier.config_file import read_realm

    realm = read_realm(realm_file)[0] if realm_file else None
    manifest, report = verify_backup(source, realm, progress())
    record = {
        **report.record(),
        "file": str(source),
        "realm": manifest.realm,
        "realm_hash": manifest.realm_hash,
        "replica": manifest.replica,
        "created_ms": manifest.created_ms,
    }
    show_report(record, output)


@backup.command(epilog=examples("keyserver backup restore r1.e2eks -c replicas/r1/keyserver.toml"))
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path))
@config_option
@path_option(
    "--break-history", "notice", metavar="NOTICE", help="Every replica is lost; say so in this file."
)
@output_option
def restore(source: Path, config_file: Path, notice: Path | None, output: str) -> None:
    """Put the rows of FILE into the empty data directory of a configuration.

    The restored replica answers lookups but signs nothing: what was signed after the backup is not in it.
    A lone replica needs a new key then. One replica of a cluster is replaced, not restored; where all are
    lost, put the same FILE back on every host, each signing the same NOTICE, and publish that.
    """
    import time

    from keyserver.config import load_config
    from keyserver.copies import history_break
    from keyserver.copies.backup_restore import restore as put_back

    config = load_config(config_file)
    history_break.require_explicit(config, notice)
    now_ms = time.time_ns() // 1_000_000
    manifest = put_back(source, config, now_ms)
    click.echo(f"✓ {config.data} holds the replica as of log entry {manifest.applied_index}", err=True)
    click.echo("  it is in quarantine: it may have signed later epochs, which this backup does not", err=True)
    if notice is None:
        click.echo(f"  know. Next: keyserver keys rekey -c {config_file}, then serve", err=True)
    else:
        ended = history_break.history_end(config, manifest.applied_index, manifest.state_digest)
        history_break.sign_notice(notice, config, ended, now_ms)
        click.echo(f"  know. The realm's history ends with epoch {ended.epoch}", err=True)
        click.echo(
            f"✓ {notice} says so. Next: the other hosts, with the same two files; publish it", err=True
        )
    record = {
        "schema": "e2eks.backup-restored/1",
        "data": str(config.data),
        "realm": manifest.realm,
        "applied_index": manifest.applied_index,
        "state_digest": manifest.state_digest,
        "epoch": manifest.epoch,
    }
    show(record, output)
