"""The commands of docs/runbooks, executed as by an operator: in a shell, with stand-ins for systemd, chrony.

Blocks marked `sh` are commands; a runbook cannot rot, for its tests run what it says.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from keyserver.demo.processes import command

ROOT = Path(__file__).resolve().parents[2]
STAND_INS = Path(__file__).parent / "bin"
SKEWED = Path(__file__).parent / "skewed.py"
RUN_SECONDS = 120.0
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(name: str, *titles: str) -> list[str]:
    """The commands of a runbook, of all sections or of those with these titles."""
    text = (ROOT / "docs" / "runbooks" / f"{name}.md").read_text()
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    found = {section.partition("\n")[0]: BLOCK.findall(section) for section in sections}
    return [block for title in titles or found for block in found[title]]


@dataclass
class Operator:
    """Somebody in a shell, in a folder of their own; `variables` are what the runbooks' README names."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.units.mkdir(parents=True)
        programs = self.folder / "programs"
        programs.mkdir()
        for name, module in {"keyserver": "keyserver", "verifier": "verifier.daemon"}.items():
            script = programs / name
            script.write_text(f'#!/bin/sh\nexec {shlex.join(command(module))} "$@"\n')
            script.chmod(0o755)
        self._path = f"{programs}:{STAND_INS}:{os.environ['PATH']}"

    @property
    def units(self) -> Path:
        return self.folder / "units"

    @property
    def offset(self) -> Path:
        """How far the clocks of skewed units are off: seconds, in a file."""
        return self.folder / "offset"

    def unit(self, name: str, *arguments: str, skewed: bool = False) -> None:
        """What `systemctl start NAME` runs."""
        line = command(arguments[0], *arguments[1:])
        if skewed:
            line = [sys.executable, "-I", str(SKEWED), str(self.offset), *arguments]
        (self.units / f"{name}.command").write_text(shlex.join(line))

    def run(self, script: str) -> str:
        """Run commands as they stand; what they print. A failing one fails the test."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env={"PATH": self._path, "HOME": str(self.folder), "LC_ALL": "C.UTF-8", "UNITS": str(self.units),
                 "OFFSET": str(self.offset), "NO_COLOR": "1", **self.variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{script}\n-> {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def follow(self, name: str, *titles: str) -> str:
        """Run all commands of a runbook, or of some of its sections, in order."""
        found = blocks(name, *titles)
        assert found, f"{name}.md has no commands under {titles}"
        return "".join(self.run(block) for block in found)

    def log_of(self, unit: str) -> str:
        return (self.units / "logs" / f"{unit}.log").read_text()

    def close(self) -> None:
        """End what still runs."""
        for file in self.units.glob("*.pid"):
            try:
                os.kill(int(file.read_text()), signal.SIGKILL)
            except ProcessLookupError:
                continue
