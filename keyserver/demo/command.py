"""The command `keyserver demo`."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import threading
from pathlib import Path

import click

from keyserver.demo.stage import Stage
from keyserver.demo.story import Story, play, steps

INTERRUPTED = 130  # by a signal, in the middle of the steps


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExamples:\n  keyserver demo\n  keyserver demo --script --keep ./demo\n"
    "  e2eks verify ./demo/proofs/alice.bin --realm-file ./demo/realm.json",
)
@click.option(
    "--replicas",
    type=click.Choice(["1", "3", "5", "7"]),
    default="3",
    show_default=True,
    help="Replicas to start.",
)
@click.option(
    "--verifiers", type=click.IntRange(1, 16), default=2, show_default=True, help="Verifiers to start."
)
@click.option(
    "--keep", type=click.Path(path_type=Path), help="Play in this new or empty folder and leave it there."
)
@click.option(
    "--script", is_flag=True, help="No prompt; the result as one JSON object on standard output, last."
)
@click.option("--serve", is_flag=True, help="Go on serving after the steps until SIGTERM.")
def demo(replicas: str, verifiers: int, keep: Path | None, script: bool, serve: bool) -> None:
    """Show a whole realm on this machine, with real processes on loopback.

    Registers, looks up, kills the leader, updates, proves an absence; then lies, and shows the unchanged
    client refuse.
    For trying out only: registrations need no proof here.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with tempfile.TemporaryDirectory(prefix="e2eks-demo-") as temporary:
        folder = keep if keep is not None else Path(temporary)
        stage = Stage(folder.resolve(), _names("v", verifiers), _names("r", int(replicas)))
        story = Story(stage, say=lambda line: click.echo(line, err=script))
        try:
            rows = play(story, stop.is_set)
            result = _result(story, rows)
            _finish(story, result, script)
            if result["ok"] and (serve or (not script and sys.stdin.isatty())):
                _wait(story, stop, serve)
        finally:
            stage.processes.stop_all()
    sys.exit(0 if result["ok"] else INTERRUPTED if stop.is_set() else 1)


def _names(letter: str, number: int) -> tuple[str, ...]:
    return tuple(f"{letter}{n}" for n in range(1, number + 1))


def _result(story: Story, rows: list[dict[str, object]]) -> dict[str, object]:
    complete = len(rows) == len(steps(len(story.stage.replicas))) and all(row["ok"] for row in rows)
    return {
        "schema": "e2eks.demo/1",
        "ok": complete,
        "steps": rows,
        "epochs": story.stage.epochs(),
        "proofs": story.saved,
    }


def _finish(story: Story, result: dict[str, object], script: bool) -> None:
    if script:
        click.echo(json.dumps(result))
    elif result["ok"]:
        story.say(f"\nAll steps hold, over {result['epochs']} epochs.")


def _wait(story: Story, stop: threading.Event, serve: bool) -> None:
    story.say("\nThe realm goes on serving. In another terminal:")
    story.say(f"    export E2EKS_HOME={story.stage.home}")
    story.say("    e2eks lookup alice@example.test")
    if serve:
        stop.wait()
        return
    threading.Thread(target=_read_line, args=(stop,), daemon=True).start()
    story.say("Press Enter to end.")
    stop.wait()


def _read_line(stop: threading.Event) -> None:
    sys.stdin.readline()
    stop.set()
