"""No device shows a guest bytes that it has not made for it: not of its process's memory, and so of no other guest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.overwritten import KINDS, environment
from tests.limits import HANGS

ROOT = Path(__file__).resolve().parents[2]


def _ask(kind: str, place: Path) -> tuple[list[str], int]:
    """What was found, and how often it was asked."""
    command = [sys.executable, "-m", "tests.hostile.overwritten", str(place), kind]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=4 * HANGS, env=environment()
    )
    assert done.returncode == 0, done.stderr
    *found, asked = done.stdout.splitlines()
    return found, int(asked.removeprefix("asked "))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "teller"])
def test_no_answer_has_bytes_of_memory_that_was_anothers(kind: str, tmp_path: Path) -> None:
    found, asked = _ask(kind, tmp_path)
    assert not found
    assert asked >= 1


def test_one_that_does_is_found(tmp_path: Path) -> None:
    found, _ = _ask("teller", tmp_path)
    assert found
