"""Tests that are run in the background of a script, or outlive their terminal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.limits import HANGS

STARTED = "import subprocess, tests.conftest; subprocess.run(['grep', '^Sig[IC]', '/proc/self/status'], check=True)"


def test_programs_that_tests_start_heed_the_terminals_signals() -> None:
    script = f"trap '' HUP; {sys.executable} -c \"{STARTED}\" & wait"  # sh ignores two keys for it
    root = Path(__file__).parents[1]
    done = subprocess.run(["sh", "-c", script], cwd=root, capture_output=True, timeout=HANGS, check=True)
    masks = {line.split()[0]: int(line.split()[1], 16) for line in done.stdout.decode().splitlines()}
    assert masks.keys() == {"SigIgn:", "SigCgt:"}, done.stderr
    assert masks["SigIgn:"] & 0b111 == 0
