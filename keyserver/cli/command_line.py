"""What all commands share: their options, their examples, and data as people or as programs read it.

Imports nothing but click: see commands.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_CONFIG = "keyserver.toml"


class Commands(click.Group):
    """Commands are listed in the order of an operator's day, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(self.commands)


def path_option(*names: str, **settings: Any) -> Callable[[F], F]:
    """An option whose value is a path."""
    return click.option(*names, type=click.Path(path_type=Path), **settings)


config_option = path_option(
    "-c",
    "--config",
    "config_file",
    default=DEFAULT_CONFIG,
    show_default=True,
    envvar="E2EKS_KEYSERVER_CONFIG",
    help="Configuration of the replica.",
)
configs_option = path_option(
    "-c",
    "--config",
    "config_files",
    multiple=True,
    default=[DEFAULT_CONFIG],
    show_default=True,
    envvar="E2EKS_KEYSERVER_CONFIG",
    help="Configuration of a replica; may be given for several.",
)
output_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "jsonl"]),
    default="table",
    show_default=True,
    envvar="E2EKS_OUTPUT",
    help="Form of the data on standard output.",
)


def examples(*lines: str) -> str:
    """The end of a command's help."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def show(record: Mapping[str, Any], output: str) -> None:
    """Print a record as json, jsonl (one line) or a table of dotted names, without its schema."""
    if output == "table":
        for name, value in flat(record):
            if name != "schema":
                click.echo(f"{name:24} {value}")
    else:
        click.echo(json.dumps(record, indent=2 if output == "json" else None, ensure_ascii=False))


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted names and values, in order; a list of plain values stays on one line."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            for number, item in enumerate(value, 1):
                yield from flat(item, f"{prefix}{name}.{number}.")
        else:
            yield prefix + name, _plain(value)


def _plain(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return " ".join(map(str, value)) or "-"
    return "-" if value is None or value == "" else value
