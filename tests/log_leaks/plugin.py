"""Part of every run: remembers the nonces that are drawn, reads what was logged, fails the run on a leak.

Logs of processes are the files `logs/*.log` and `log` below the run's temporary folder; the seeds of keys are
in `*.key` there. Of what tests print themselves only lines in the form of a log event are searched.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from log_leaks.finding import SECRET_BYTES, leaks

EVENT = re.compile(r'"event": |^\S+ \[(?:debug|info|warning|error|critical) *\] ', re.MULTILINE)
KEY_FILE_BYTES = 64 * 1024


class Leaks:
    """Registered by conftest BEFORE anything is collected: what is imported later draws nonces through it."""

    def __init__(self) -> None:
        self._secrets: set[bytes] = set()
        self._found: list[str] = []
        self._draw = secrets.token_bytes
        secrets.token_bytes = self._token_bytes

    def _token_bytes(self, nbytes: int | None = None) -> bytes:
        drawn = self._draw(nbytes)
        if nbytes == SECRET_BYTES:
            self._secrets.add(drawn)
        return drawn

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Iterator[None]:
        report = yield
        for _, _, content in item._report_sections:
            self._search(
                f"{item.nodeid} logged", (line for line in content.splitlines() if EVENT.search(line))
            )
        return report

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        factory = getattr(session.config, "_tmp_path_factory", None)
        folder = getattr(factory, "_basetemp", None)
        if folder is not None:
            self._secrets |= set(seeds(folder))
            for log in logs(folder):
                with log.open(encoding="utf-8", errors="replace") as lines:
                    self._search(str(log.relative_to(folder)), lines)
        if self._found:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._found:
            terminalreporter.section("leaks in logs", red=True)
            for line in self._found:
                terminalreporter.line(line)

    def _search(self, where: str, lines: Iterator[str]) -> None:
        said = {what for line in lines for what in leaks(line, self._secrets)}
        self._found += [f"{where}: {what}" for what in sorted(said)]


def logs(folder: Path) -> Iterator[Path]:
    """Every log of a process below a folder. LevelDB calls its journals so too; they lie elsewhere."""
    for place, _, names in os.walk(folder):
        inside = Path(place)
        for name in names:
            if name == "log" or (inside.name == "logs" and name.endswith(".log")):
                yield inside / name


def seeds(folder: Path) -> Iterator[bytes]:
    """The secrets in key files below a folder."""
    for place, _, names in os.walk(folder):
        for name in names:
            if not name.endswith(".key"):
                continue
            file = Path(place) / name
            if file.is_file() and file.stat().st_size <= KEY_FILE_BYTES:
                try:
                    secret = bytes.fromhex(file.read_text("ascii").strip())
                except (ValueError, OSError):
                    continue
                if len(secret) == SECRET_BYTES:
                    yield secret
