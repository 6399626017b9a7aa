"""Crashes are counted in a file: after five within ten minutes a replica only reads until a person looked."""

from pathlib import Path

from keyserver.crash_counter import CRASHES_MAX, FILE, WINDOW_MS, CrashCounter


class Clock:
    def __init__(self) -> None:
        self.now_ms = 1_000_000_000

    def __call__(self) -> int:
        return self.now_ms


def crashed(folder: Path, clock: Clock, times: int = CRASHES_MAX, apart_ms: int = 1_000) -> None:
    for _ in range(times):
        assert CrashCounter(folder, clock).begin() == ""
        clock.now_ms += apart_ms


def test_the_start_after_five_crashes_within_ten_minutes_is_diagnostic(tmp_path: Path) -> None:
    clock = Clock()
    crashed(tmp_path, clock)
    assert "crashed 5 times within 10 minutes" in CrashCounter(tmp_path, clock).begin()


def test_diagnostic_mode_stays_until_it_is_left_on_purpose(tmp_path: Path) -> None:
    clock = Clock()
    crashed(tmp_path, clock)
    for _ in range(3):
        assert CrashCounter(tmp_path, clock).begin()
        clock.now_ms += WINDOW_MS
    CrashCounter(tmp_path, clock).clear()
    crashed(tmp_path, clock)


def test_a_clean_end_forgets_what_was_counted(tmp_path: Path) -> None:
    clock = Clock()
    crashed(tmp_path, clock, CRASHES_MAX - 1)
    CrashCounter(tmp_path, clock).clear()
    crashed(tmp_path, clock)


def test_a_start_that_was_refused_is_no_crash_and_forgets_none(tmp_path: Path) -> None:
    clock = Clock()
    crashed(tmp_path, clock, CRASHES_MAX - 1)
    for _ in range(CRASHES_MAX):
        refused = CrashCounter(tmp_path, clock)
        assert refused.begin() == ""
        refused.take_back()
        clock.now_ms += 1_000
    crashed(tmp_path, clock, times=1)
    diagnostic = CrashCounter(tmp_path, clock)
    assert diagnostic.begin()
    diagnostic.take_back()
    assert CrashCounter(tmp_path, clock).begin()


def test_a_start_that_was_refused_before_it_was_counted_changes_nothing(tmp_path: Path) -> None:
    clock = Clock()
    crashed(tmp_path, clock)
    CrashCounter(tmp_path, clock).take_back()
    assert CrashCounter(tmp_path, clock).begin()


def test_crashes_far_apart_do_not_add_up(tmp_path: Path) -> None:
    crashed(tmp_path, Clock(), times=3 * CRASHES_MAX, apart_ms=WINDOW_MS // CRASHES_MAX)


def test_a_clock_that_was_set_back_does_not_count_against_the_replica(tmp_path: Path) -> None:
    clock = Clock()
    crashed(tmp_path, clock)
    clock.now_ms -= 2 * WINDOW_MS
    assert CrashCounter(tmp_path, clock).begin() == ""


def test_a_file_that_cannot_be_read_or_written_keeps_nobody_from_starting(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("not a record")
    assert CrashCounter(tmp_path, Clock()).begin() == ""
    assert CrashCounter(tmp_path / "missing", Clock()).begin() == ""
    CrashCounter(tmp_path / "missing", Clock()).clear()
