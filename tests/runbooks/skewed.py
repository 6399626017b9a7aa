"""Run a module of the project under a clock that is off: skewed.py OFFSET-FILE MODULE ARGUMENTS…

The file holds seconds; without it the clock is right. It is read at every look at the clock, so that
correcting it is seen at once, as with a real clock.
"""

import runpy
import sys
import time
from pathlib import Path

real_ns = time.time_ns
file = Path(sys.argv[1])


def skewed_ns() -> int:
    try:
        off = float(file.read_text())
    except (OSError, ValueError):
        off = 0.0
    return real_ns() + int(off * 1e9)


time.time_ns = skewed_ns
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
