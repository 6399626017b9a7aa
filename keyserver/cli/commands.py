"""The command `keyserver`. Data goes to stdout, everything else to stderr; a traceback only if asked for.

Only click is imported here at the top, so that help and completion answer at once.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from keyserver.cli import backup, check, keys, realm, replicas
from keyserver.cli.command_line import (
    Commands,
    config_option,
    examples,
    flat,
    output_option,
    path_option,
    show,
)

if TYPE_CHECKING:
    from keyserver.config import Config

url_option = click.option("--url", default="", help="HTTP listener to ask, instead of the configuration's.")
timeout_option = click.option(
    "--timeout", type=click.FloatRange(min=0.1), default=10.0, show_default=True, help="Seconds to wait."
)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="e2eks", message="keyserver %(version)s")
def keyserver() -> None:
    """A keyserver that cannot lie unseen: set up a realm, serve it, look after it.

    \b
    Try it:     keyserver demo
    Exit codes: 0 done  1 unexpected  2 usage or configuration  5 unreachable  6 refused
    """


# Setting up


@keyserver.command(
    epilog=examples(
        "keyserver init ./realm --realm example.org --replica r1=keys.example.org",
        "keyserver init ./realm --realm example.org --replica r1=a.example.org --replica r2=b.example.org "
        "--replica r3=c.example.org",
        "keyserver init ./realm --realm test.example --insecure-skip-registration-proof",
    )
)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--realm", required=True, help="Name of the realm, usually a domain.")
@click.option(
    "--replica",
    "replicas",
    multiple=True,
    metavar="NAME=HOST",
    help="A replica and the host it is reached by: one, three, five or seven. [default: r1=localhost]",
)
@click.option("--domain", "domains", multiple=True, help="Domain of user ids. [default: the realm's name]")
@click.option("--listen", "listen_host", default="", metavar="HOST", help="Address to listen on.")
@click.option(
    "--port-base",
    type=click.IntRange(1, 65529),
    metavar="N",
    help="Ports N public, N+1 verification, N+3 push, N+4 HTTP, N+5 replication, N+6 peers; 10 more for each "
    "replica before it on the same host. [default: 4625, 4626, 4628, 25519, 9807, 4629]",
)
@path_option("--registration-ca", help="PEM file of an authority whose certificates admit registrations.")
@click.option("--insecure-skip-registration-proof", is_flag=True, help="Anybody may register any free name.")
@output_option
def init(
    folder: Path,
    realm: str,
    replicas: tuple[str, ...],
    domains: tuple[str, ...],
    listen_host: str,
    port_base: int | None,
    registration_ca: Path | None,
    insecure_skip_registration_proof: bool,
    output: str,
) -> None:
    """Set up a realm in DIR: keys, certificates, realm.json and a configuration for each replica."""
    from datetime import UTC, datetime

    from keyserver.installation import setup

    plan = setup.Plan(
        realm=realm,
        replicas=tuple(_replica(text) for text in replicas) or setup.Plan(realm).replicas,
        domains=domains,
        listen_host=listen_host,
        ports=setup.Ports() if port_base is None else setup.Ports.from_base(port_base),
        registration_ca=registration_ca,
        insecure_skip_registration_proof=insecure_skip_registration_proof,
    )
    made = setup.init(folder, plan, datetime.now(UTC))
    configs = " ".join(f"-c {path}" for path in made.configs)
    carry = [f"  next: carry each of {folder / 'replicas'} and realm.json to its host, and delete it here"]
    for line in (
        f"✓ realm {realm} in {folder}",
        f"✓ its authorities' keys are in {folder / 'ca'}: keep them offline",
        *(carry if len(made.configs) > 1 else ()),
        "  next: let verifiers run `verifier init DIR --realm-file realm.json` and add them with",
        f"        keyserver realm add-verifier {configs} INFO-FILE...",
    ):
        click.echo(line, err=True)
    record = {
        "schema": "e2eks.init/1",
        "realm": realm,
        "fingerprint": made.fingerprint,
        "realm_file": str(made.realm_file),
        "replication": plan.replication,
        "configs": [str(path) for path in made.configs],
    }
    show(record, output)


def _replica(text: str) -> Any:
    from keyserver.installation.setup import Replica

    name, equals, host = text.partition("=")
    if not equals:
        raise click.BadParameter(f"{text!r} is not NAME=HOST", param_hint="--replica")
    return Replica(name, host)


keyserver.add_command(realm.realm)


# Serving


@keyserver.command(
    epilog=examples("keyserver serve -c replicas/r1/keyserver.toml", "keyserver serve --check -o json")
)
@config_option
@click.option("--check", is_flag=True, help="Check everything, print the settings in effect, start nothing.")
@click.option("--allow-split-view", is_flag=True, help="Serve although clients could be shown two histories.")
@click.option("--leave-diagnostic", is_flag=True, help="Take part again: forget the crashes counted.")
@output_option
def serve(
    config_file: Path, check: bool, allow_split_view: bool, leave_diagnostic: bool, output: str
) -> None:
    """Run a replica until SIGTERM.

    It lets updates that wait get their proof; a second SIGTERM ends it at once. SIGHUP: read TLS files and
    verifiers.json again. After 5 crashes within 10 minutes a replica only reads,
    until it is started with --leave-diagnostic.
    """
    import dataclasses

    from keyserver.config import check_files, check_split_view, load_config

    config = load_config(config_file)
    if allow_split_view:
        config = dataclasses.replace(config, allow_split_view=True)
    check_files(config)
    check_split_view(config)
    if check:
        _check(config, output)
        return
    from keyserver.run import serve as run_replica

    run_replica(config, leave_diagnostic=leave_diagnostic)


_NO_SETTINGS = ("schema", "file", "realm_file", "certificates_end_ms")  # of what `serve --check` shows


def _check(config: Config, output: str) -> None:
    """What only a start would otherwise find out, without waiting for a running replica to end."""
    from keyserver.admission.gate import Gate
    from keyserver.config import effective, settings_in_file
    from keyserver.signer import check_secrets
    from keyserver.tls_files import expiring, read_credentials

    Gate(config.registration, config.realm)
    check_secrets(config)
    ends_ms = read_credentials(config).not_after_ms()
    for sentence in expiring(ends_ms, time.time_ns() // 1_000_000):
        click.echo(f"! {sentence}", err=True)
    record = effective(config) | {"certificates_end_ms": ends_ms}
    if output == "table":
        given = settings_in_file(config)
        for name, value in flat(record):
            is_given = name in given or name.partition(".")[0] in _NO_SETTINGS
            click.echo(f"{name:40} {value}" + ("" if is_given else "  (default)"))
    else:
        show(record, output)
    click.echo("✓ the configuration is usable", err=True)


# Looking after


@keyserver.command(epilog=examples("keyserver status -o json | jq .head.epoch"))
@config_option
@url_option
@timeout_option
@output_option
def status(config_file: Path, url: str, timeout: float, output: str) -> None:
    """Ask a running replica how it is. Exit code 0 if it is ready, 5 if not."""
    from keyserver.cli.remote_status import fetch_status

    record = fetch_status(config_file, url, timeout)
    show(record, output)
    if not record.get("ready"):
        click.get_current_context().exit(5)


@keyserver.command(epilog=examples("keyserver head -o json | jq -r .root_hash"))
@config_option
@url_option
@timeout_option
@output_option
def head(config_file: Path, url: str, timeout: float, output: str) -> None:
    """Print the newest epoch head of a running replica, and who ratified it."""
    from keyserver.cli.remote_status import fetch_status
    from verifier.errors import Reason, Refused

    record = fetch_status(config_file, url, timeout)
    if not record.get("head"):
        why = record.get("reason") or "it has no epoch yet"
        raise Refused(Reason.NOT_READY, f"the replica shows no head: {why}. Ask again later")
    show({"schema": "e2eks.head/1", **record["head"]}, output)


@keyserver.command("log-dump", epilog=examples("keyserver log-dump --from 100 --limit 10"))
@config_option
@click.option(
    "--from", "start", type=click.IntRange(min=1), default=1, show_default=True, help="First index."
)
@click.option("--limit", type=click.IntRange(min=1), help="Most entries to print.")
@output_option
def log_dump(config_file: Path, start: int, limit: int | None, output: str) -> None:
    """Print the log of a stopped replica, one entry a line. Names and profiles are not shown."""
    from keyserver.config import load_config
    from keyserver.engines import engine_of
    from keyserver.log_dump import dump, one_line

    config = load_config(config_file)
    for record in dump(config.data, start, limit, engine_of(config)):
        if output == "table":
            click.echo(one_line(record))
        else:
            show(record, "jsonl")


keyserver.add_command(check.check)
keyserver.add_command(check.verify_db)
keyserver.add_command(backup.backup)
keyserver.add_command(keys.keys)
keyserver.add_command(replicas.replicas)


# The rest


@keyserver.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True},
    short_help="Show a whole realm on this machine.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def demo(arguments: tuple[str, ...]) -> None:
    """Loaded only when it is called."""
    from keyserver.demo.command import demo as play

    play.main(list(arguments), prog_name="keyserver demo", standalone_mode=False)


@keyserver.command(epilog=examples('eval "$(keyserver completion bash)"'))
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a completion script for a shell."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(keyserver, {}, "keyserver", "_KEYSERVER_COMPLETE").source())


# Ending


def main() -> None:
    """The console script: runs a command and ends the process with the exit code of contract section 4."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command; the exit code of contract section 4."""
    try:
        result = keyserver.main(arguments, prog_name="keyserver", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Abort:
        return 130  # by a signal of the keyboard, as shells have it
    except click.ClickException as error:
        error.show()
        return 2
    except BrokenPipeError:
        # Or the interpreter would complain about the closed pipe once more, at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        return _fail(error)


def _fail(error: Exception) -> int:
    from keyserver import exits
    from keyserver.machine.codes import Halt
    from kv.interface import StorageError
    from verifier.crypto.signatures import SignatureRuleError
    from verifier.errors import ConfigError, E2eksError, Refused

    if os.environ.get("E2EKS_DEBUG"):
        traceback.print_exception(error)
    if isinstance(error, ModuleNotFoundError):
        error = ConfigError(f"the package {error.name} is not here: install e2eks with its extra `server`")
    cause = exits.innermost(error)
    text = str(cause)
    if isinstance(cause, Refused):
        text = f"{text} ({cause.reason})"
    elif not isinstance(cause, E2eksError | StorageError | Halt | SignatureRuleError):
        # What an unforeseen error says may hold a name or a secret.
        text = (
            f"unexpected {type(cause).__name__}: a bug. Run again with E2EKS_DEBUG=1 and report what it shows"
        )
    click.echo(f"keyserver: error: {text}", err=True)
    return exits.exit_code(cause)
