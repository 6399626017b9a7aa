"""The command `verifier`. Everything but click is imported where it is used, so that --help is quick.

Data goes to stdout, progress and ✓ lines to stderr; exit codes are those of contract section 4.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

EXISTING = click.Path(exists=True, dir_okay=False, path_type=Path)
CONFIG = click.option(
    "-c", "--config", "config_file", type=click.Path(path_type=Path), default=Path("verifier.toml"),
    show_default=True, help="The configuration that `verifier init` wrote.",
)  # fmt: skip
OUTPUT = click.option("-o", "--output", type=click.Choice(["table", "json", "jsonl"]), default="table")


def _guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Turn the errors a person may meet into a line on stderr and an exit code; never a traceback."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            _run(command, *args, **kwargs)
        except ModuleNotFoundError as error:
            if os.environ.get("E2EKS_DEBUG"):
                raise
            what = f"the package {error.name} is not here: install e2eks with its extra `verifier`"
            click.echo(f"✗ {what}", err=True)
            sys.exit(2)

    return run


def _run(command: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    from kv.interface import StorageError
    from verifier.daemon.failures import DaemonError
    from verifier.errors import ConfigError, E2eksError

    try:
        command(*args, **kwargs)
    except (E2eksError, StorageError) as error:
        if os.environ.get("E2EKS_DEBUG"):
            raise
        click.echo(f"✗ {error}", err=True)
        if isinstance(error, ConfigError):
            sys.exit(2)
        sys.exit(error.exit_code if isinstance(error, DaemonError) else 1)


def _say(line: str) -> None:
    """A line for a person, on stderr; nothing with -q."""
    if not click.get_current_context().find_root().params.get("quiet"):
        click.echo(line, err=True)


def _show(data: dict[str, Any], output: str) -> None:
    if output == "table":
        width = max(map(len, data))
        for name, value in data.items():
            click.echo(f"{name:<{width}}  {_plain(str(value))}")
    else:
        click.echo(json.dumps(data, indent=2 if output == "json" else None, sort_keys=True))


def _plain(text: str) -> str:
    """On one line, without anything that a terminal obeys: words of strangers are shown too."""
    return "".join(c if c.isprintable() else "?" for c in text)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="e2eks", prog_name="verifier")
@click.option("-q", "--quiet", is_flag=True, help="No ✓ lines and no progress.")
def main(quiet: bool) -> None:
    """Watch a realm: replay every change, ratify what is lawful, keep evidence of what is not."""
    del quiet  # read from the context by _say


@main.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--realm-file", type=EXISTING, required=True, help="realm.json of the realm to watch.")
@click.option("--name", default="verifier", show_default=True, help="What the realm lists this verifier as.")
@click.option("--address", default="localhost:4630", show_default=True, metavar="HOST:PORT",
              help="Where other verifiers and clients reach it.")  # fmt: skip
@click.option("--listen", default="", metavar="HOST:PORT", help="Where it listens; follows from --address.")
@click.option("--verification-address", multiple=True, metavar="HOST:PORT",
              help="Where to read the verifier log. [default: the realm's hosts, port 4626]")  # fmt: skip
@click.option("--push-address", multiple=True, metavar="HOST:PORT",
              help="Where to push ratifications. [default: the realm's hosts, port 4628]")  # fmt: skip
@_guarded
def init(
    folder: Path,
    realm_file: Path,
    name: str,
    address: str,
    listen: str,
    verification_address: tuple[str, ...],
    push_address: tuple[str, ...],
) -> None:
    """Set up a verifier in DIR and print its verifier info, which the realm's operator adds to the realm.

    \b
    Example:
      verifier init v1 --realm-file realm.json --name v1 --address v1.example.net:4630
      keyserver realm add-verifier -c keyserver.toml v1/verifier-info.json
    """
    from datetime import UTC, datetime

    from verifier.daemon.run import unix_ms
    from verifier.daemon.setup import Plan
    from verifier.daemon.setup import init as set_up

    plan = Plan(name, address, listen, verification_address, push_address)
    info = set_up(folder, realm_file, plan, datetime.fromtimestamp(unix_ms() // 1000, UTC))
    click.echo(info, nl=False)
    _say(f"✓ made {folder}. Next: give {folder / 'verifier-info.json'} to the realm's operator,")
    _say(f"  put the realm.json you get back in place of {folder / 'realm.json'}, then run")
    _say(f"  verifier run -c {folder / 'verifier.toml'}")
    if not (verification_address and push_address):
        _say("  It reads from port 4626 of the realm's hosts and pushes to 4628: if they listen elsewhere,")
        _say(f"  correct [keyserver] in {folder / 'verifier.toml'}")


@main.command()
@CONFIG
@click.option("--check", is_flag=True, help="Check configuration, keys and certificate; start nothing.")
@_guarded
def run(config_file: Path, check: bool) -> None:
    """Follow the realm and ratify its epochs until SIGTERM.

    What is owed is delivered once more then; a second SIGTERM ends it at once. SIGHUP: read the TLS files
    again.
    Ends with exit code 3 or 8 and a file of evidence when the realm breaks its law.

    \b
    Example:
      verifier run -c /etc/e2eks-verifier/verifier.toml
    """
    from verifier.daemon.config import load_config
    from verifier.daemon.logs import log_json_to_stderr
    from verifier.daemon.run import check_files, serve

    config = load_config(config_file)
    if check:
        for sentence in check_files(config):
            click.echo(f"! {sentence}", err=True)
        _say("✓ the configuration is usable")
        return
    log_json_to_stderr()
    serve(config)


@main.command()
@CONFIG
@click.option("--address", default="", metavar="HOST:PORT",
              help="Where others reach this verifier. [default: as before]")  # fmt: skip
@click.option("--floor", type=click.IntRange(min=0), default=0, metavar="EPOCH",
              help="The old key may have ratified up to here, as you know from elsewhere.")  # fmt: skip
@_guarded
def rekey(config_file: Path, address: str, floor: int) -> None:
    """Give a stopped verifier a new key and register, and print its new verifier info.

    For a verifier in quarantine: restored, copied, or without its register. The old files are set aside as
    *.retired-TIME and are never used again; what was replayed is kept.

    \b
    Example:
      verifier rekey -c verifier.toml
      keyserver realm add-verifier -c keyserver.toml --replace v1 verifier-info.json
    """
    from datetime import UTC, datetime

    from verifier.daemon.config import load_config
    from verifier.daemon.rekey import rekey as renew
    from verifier.daemon.run import unix_ms

    config = load_config(config_file)
    done = renew(config, datetime.fromtimestamp(unix_ms() // 1000, UTC), address=address, floor=floor)
    click.echo(done.info, nl=False)
    for path in done.retired:
        _say(f"✓ set aside {path}")
    _say(f"✓ {config.name} has a new key; it ratifies nothing up to epoch {done.floor}")
    _say(f"  next: give {done.info_file} to the realm's operator, who runs")
    _say(f"        keyserver realm add-verifier -c keyserver.toml --replace {config.name} verifier-info.json")
    _say(f"  then put the realm.json you get back in place of {config.realm_file} and run")
    _say(f"        verifier run -c {config.path}")
    _say("  The old key must not be used anywhere: if a copy of this verifier runs, stop it.")


@main.command()
@CONFIG
@OUTPUT
@_guarded
def status(config_file: Path, output: str) -> None:
    """Show where the verifier stands. Exit code 0 if it is running, else 5."""
    from verifier.daemon.config import load_config
    from verifier.daemon.run import unix_ms
    from verifier.daemon.status import read_status

    config = load_config(config_file)
    found = read_status(config.status, unix_ms())
    found["evidence"] = [str(path) for path in sorted(config.evidence.glob("*.json"))]
    _show(found, output)
    if not found["running"]:
        why = found.get("stopped") or "it has written no status for a while"
        click.echo(f"✗ the verifier does not run: {_plain(str(why))}", err=True)
        sys.exit(5)


@main.command()
@CONFIG
@click.option("--realm-file", type=EXISTING, help="Audit without a configuration: the realm …")
@click.option("--address", metavar="HOST:PORT", help="… and a keyserver's verification address.")
@click.option("--from", "start", type=click.IntRange(1, 1), default=1, help="The first step: always 1.")
@click.option("--evidence", type=click.Path(path_type=Path), default=Path("evidence"), show_default=True,
              help="Where evidence goes if there is any.")  # fmt: skip
@OUTPUT
@_guarded
def audit(
    config_file: Path, realm_file: Path | None, address: str | None, start: int, evidence: Path, output: str
) -> None:
    """Replay the whole verifier log into a temporary store and say whether it is lawful.

    \b
    Example:
      verifier audit --from 1 --realm-file realm.json --address keys.example.org:4626
    """
    from verifier.config_file import read_realm, split_address
    from verifier.daemon.audit import audit as replay_all
    from verifier.daemon.config import load_config
    from verifier.daemon.evidence_files import keep_evidence
    from verifier.daemon.failures import Misbehaved, Unlawful
    from verifier.daemon.run import unix_ms
    from verifier.daemon.transport import Credentials, Keyserver
    from verifier.errors import ConfigError

    del start
    if realm_file is not None and address is None:
        raise ConfigError("--realm-file needs --address, the keyserver's verification address")
    if realm_file is not None and address is not None:
        realm = read_realm(realm_file)[0]
    else:
        config = load_config(config_file)
        realm, address = config.realm, address or config.verification[0]
    split_address(address, "--address")
    keyserver = Keyserver(address, Credentials("\n".join(realm.tls_roots_pem).encode("ascii")))
    try:
        found = replay_all(realm, keyserver, _progress())
    except Misbehaved as misbehaved:
        kept = keep_evidence(evidence, realm, misbehaved.evidence, unix_ms())
        raise Unlawful(str(misbehaved), kept, misbehaved.exit_code) from None
    verdict = {
        "schema": "e2eks.audit/1",
        "realm": realm.name,
        "lawful": True,
        "steps": found.steps,
        "epoch": found.epoch,
        "head_hash": found.head_hash.hex(),
        "issue_time_ms": found.issue_time_ms,
        "pending_updates": found.pending_updates,
    }
    _show(verdict, output)
    _say(f"✓ every update and head from step 1 to {found.steps} is lawful")


@main.command()
@CONFIG
@OUTPUT
@_guarded
def check(config_file: Path, output: str) -> None:
    """Check the database and the sign-once register of a stopped verifier; change nothing.

    Every tree page, root, head, signature and entry is computed anew. Exit code 0: all is sound. 1: there are
    faults, each shown with its table, its key and the reason.

    \b
    Example:
      verifier check -c v1/verifier.toml -o json
    """
    from verifier.daemon.check_stopped import check_stopped
    from verifier.daemon.config import load_config

    config = load_config(config_file)
    report = check_stopped(config)
    record = report.record() | {"realm": config.realm.name, "verifier": config.name}
    if output == "table":
        _show({name: value for name, value in record.items() if name != "faults"}, output)
        for fault in record["faults"]:
            click.echo(f"✗ {fault['table']} {fault['key'] or '-'}: {fault['reason']}")
    else:
        _show(record, output)
    if not report.sound:
        _say(f"✗ {record['faults_found']} faults. Keep this disk as it is; set the verifier up anew, with a")
        _say("  new key, in another folder")
        sys.exit(1)
    _say("✓ everything fits together")


def _progress() -> Callable[[Any], None]:
    """Lines on stderr, when it is a terminal."""
    shown = sys.stderr.isatty() and not click.get_current_context().find_root().params.get("quiet")

    def show(state: Any) -> None:
        if shown:
            click.echo(
                f"\rreplayed {state.next_index - 1} steps, epoch {state.chain.epoch}", err=True, nl=False
            )

    return show


@main.group()
def evidence() -> None:
    """Look at files of evidence."""


@evidence.command()
@click.argument("file", type=EXISTING)
@click.option("--realm-file", type=EXISTING, required=True, help="realm.json of the realm it is about.")
@OUTPUT
@_guarded
def verify(file: Path, realm_file: Path, output: str) -> None:
    """Say what FILE proves to somebody who trusts nothing but the realm file.

    Exit code 0: it proves misbehaviour. 3: it does not (testimony, or refuted).
    """
    from verifier.config_file import read_realm
    from verifier.daemon.evidence import Standing, judge
    from verifier.daemon.evidence_files import read_evidence

    document = read_evidence(file)
    verdict = judge(read_realm(realm_file)[0], document)
    shown = {
        "schema": "e2eks.evidence-verdict/1",
        "standing": str(verdict.standing),
        "kind": document.kind,
        "statement": verdict.statement,
        "signed_by": [key_id.hex() for key_id in verdict.culprits],
    }
    _show(shown, output)
    if verdict.standing is not Standing.PROVEN:
        sys.exit(3)
