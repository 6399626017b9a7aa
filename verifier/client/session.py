"""One run of `e2eks`: its flags, its files, and how it speaks: data on stdout, everything else on stderr.

Only click is imported here at once: the rest costs time that `--help` need not spend.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

import click

if TYPE_CHECKING:
    from pathlib import Path

    from verifier.client.client import Answer, Client
    from verifier.client.contexts import Context, Contexts
    from verifier.client.identity import Identities
    from verifier.client.places import Places

FORMATS = ("table", "json", "jsonl")
UPDATE_TIMEOUT_S = 60.0  # an update waits for its epoch and its ratifications
_META = "e2eks"
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}

F = TypeVar("F", bound=Callable[..., Any])


def seconds_of(text: str) -> float:
    """A length of time in seconds: 10, 10s, 500ms, 2m. Raises click.UsageError."""
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    try:
        seconds = float(number) * _UNITS[text[len(number) :] or "s"]
    except (ValueError, KeyError):
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise click.UsageError(f"{text!r} is no timeout; write 10s, 500ms or 2m")
    return seconds


def _keep(ctx: click.Context, param: click.Parameter, value: object) -> object:
    """Flags may stand before or after the command; the one nearest to the end wins."""
    if value is not None:
        ctx.meta[f"{_META}.{param.name}"] = value
    return value


def flags(*, environment: bool = False) -> list[click.Option]:
    """The flags that every command takes; the main command reads them from the environment, too."""

    def flag(*names: str, variable: str, **attributes: Any) -> click.Option:
        if environment:
            attributes["envvar"] = f"E2EKS_{variable}"
        return click.Option(names, expose_value=False, callback=_keep, default=None, **attributes)

    return [
        flag(
            "-o",
            "--output",
            variable="OUTPUT",
            type=click.Choice(FORMATS),
            help="How data is written to stdout.",
        ),
        flag(
            "-q", "--quiet", variable="QUIET", is_flag=True, flag_value=True, help="No ✓ lines, no progress."
        ),
        flag(
            "-v",
            "--verbose",
            variable="VERBOSE",
            is_flag=True,
            flag_value=True,
            help="Say what is asked of whom.",
        ),
        flag("--timeout", variable="TIMEOUT", metavar="TIME", help="For each call: 10s, 500ms, 2m."),
        flag("-c", "--config", variable="CONFIG", type=click.Path(), help="Settings file to use."),
        flag(
            "--context",
            variable="CONTEXT",
            metavar="NAME",
            help="Realm to ask, of those added with `context add`.",
        ),
    ]


class Command(click.Command):
    """A command that takes the common flags after its own."""

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.params += flags()


class Session:
    """The flags of this run and what follows from them."""

    def __init__(self, meta: Mapping[str, Any]) -> None:
        self._meta = meta
        self.kept_evidence: Sequence[Path] = ()

    @classmethod
    def of(cls, ctx: click.Context) -> Session:
        """The session of the running command."""
        session: Session = ctx.meta.setdefault(f"{_META}.session", cls(ctx.meta))
        return session

    def flag(self, name: str) -> Any:
        """The flag as given, or as in the settings file, or None."""
        given = self._meta.get(f"{_META}.{name}")
        return self._settings.get(name) if given is None and name != "config" else given

    @cached_property
    def places(self) -> Places:
        from verifier.client.places import Places

        return Places.from_environment(os.environ)

    @cached_property
    def _settings(self) -> Mapping[str, Any]:
        from pathlib import Path

        from verifier.client.places import read_settings

        given = self._meta.get(f"{_META}.config")
        settings: dict[str, Any] = dict(
            read_settings(Path(given) if given else self.places.settings, required=bool(given))
        )
        if settings.get("output", FORMATS[0]) not in FORMATS:
            raise click.UsageError(f"the settings file: output must be one of {', '.join(FORMATS)}")
        return settings

    @property
    def output(self) -> str:
        return self.flag("output") or FORMATS[0]

    @cached_property
    def contexts(self) -> Contexts:
        from verifier.client.contexts import Contexts

        return Contexts(self.places.contexts)

    @cached_property
    def context(self) -> Context:
        """The realm to ask, and under which quorum. Raises ConfigError."""
        return self.contexts.load_current(self.flag("context"))

    @cached_property
    def identities(self) -> Identities:
        from verifier.client.identity import Identities

        return Identities(self.places.identities)

    def client(self, *, updates: bool = False, context: Context | None = None) -> Client:
        """A client of the realm in use; `updates` waits longer by default."""
        from verifier.client.client import Client
        from verifier.client.evidence import EvidenceFolder
        from verifier.client.pins import FilePins
        from verifier.client.transport import DEFAULT_TIMEOUT_S, GrpcTransport

        chosen = context or self.context
        realm = chosen.realm
        given = self.flag("timeout")
        usual = UPDATE_TIMEOUT_S if updates else DEFAULT_TIMEOUT_S
        transport = GrpcTransport(
            realm.addresses,
            tls_roots_pem=realm.tls_roots_pem,
            timeout_s=seconds_of(given) if given else usual,
            tried=lambda words: self.say(f"asking {words}") if self.flag("verbose") else None,
        )
        click.get_current_context().call_on_close(transport.close)
        evidence = EvidenceFolder(self.places.evidence)
        self.kept_evidence = evidence.kept
        pins = FilePins(self.places.pins, realm.hash)
        return Client(realm, transport, pins, quorum=chosen.quorum, evidence=evidence)

    def finish(self, code: int) -> NoReturn:
        """End the command with an exit code."""
        click.get_current_context().exit(code)

    # Speaking

    def say(self, words: str) -> None:
        """Progress, for people."""
        if not self.flag("quiet"):
            self._to_stderr(words)

    def tick(self, what: str, how: str) -> None:
        """One ✓ line: something that holds, and how it was shown."""
        if not self.flag("quiet"):
            self._to_stderr(f" {click.style('✓', fg='green')} {what:<17} {how}")

    def _to_stderr(self, words: str) -> None:
        click.echo(words, err=True, color=False if os.environ.get("NO_COLOR") else None)

    def write(self, document: Mapping[str, object], table: Iterable[str] = ()) -> None:
        """A result: its JSON form, or its lines."""
        if self.output == "table":
            for line in table:
                click.echo(line)
        else:
            click.echo(as_json(document, self.output))

    def write_all(
        self, documents: Sequence[Mapping[str, object]], *, schema: str, table: Iterable[str]
    ) -> None:
        """A list: one JSON object with `items`, one object a line, or the lines of a table."""
        if self.output == "jsonl":
            for item in documents:
                click.echo(as_json({"schema": schema, **item}, "jsonl"))
        else:
            self.write({"schema": schema, "items": list(documents)}, table)

    def show(self, client: Client, answer: Answer, *, now_ms: int, schema: str = "") -> dict[str, object]:
        """The ✓ lines of a verified answer; its JSON form."""
        from verifier.client import show

        replicas = client.replicas_at(answer.result.head.head.epoch)
        view = show.View(client.realm, replicas, answer, now_ms)
        for what, how in show.checks(view):
            self.tick(what, how)
        return show.document(view, schema=schema or show.LOOKUP_SCHEMA)

    def report(self, error: Exception) -> int:
        """Say what went wrong; the exit code."""
        from verifier.client import failure
        from verifier.client.outcome import exit_of_error

        words = failure.words(error, self.kept_evidence)
        self._to_stderr(f"{click.style('e2eks: error:', fg='red')} {words}")
        try:
            output = self.output
        except Exception:  # the settings file itself may be what is wrong
            output = FORMATS[0]
        if output != "table":
            click.echo(as_json(failure.document(error, self.kept_evidence), output))
        return int(exit_of_error(error))


class Commands(click.Group):
    """A group whose errors end in words and an exit code, never in a traceback."""

    command_class = Command
    group_class = type

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.Abort, KeyboardInterrupt):
            from verifier.client.outcome import Exit

            click.echo("stopped", err=True)
            ctx.exit(Exit.STOPPED)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except BrokenPipeError:  # who reads has read enough: click ends without a word
            raise
        except Exception as error:
            if os.environ.get("E2EKS_DEBUG"):
                raise
            ctx.exit(Session.of(ctx).report(error))


def as_json(document: Mapping[str, object], output: str) -> str:
    """One JSON object; over several lines unless the format is jsonl."""
    import json

    return json.dumps(document, indent=2 if output == "json" else None, ensure_ascii=False)


def is_interactive() -> bool:
    """Whether somebody is there to answer a question."""
    return sys.stdin.isatty()


def with_session(command: F) -> F:
    """Hands the session of the run to a command, as its first argument."""

    @wraps(command)
    def run(*arguments: Any, **options: Any) -> Any:
        return command(Session.of(click.get_current_context()), *arguments, **options)

    return cast(F, run)
