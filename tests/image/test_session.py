"""image/session.sh on a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest

from tests.limits import HANGS

BUSYBOX = shutil.which("busybox") or ""
pytestmark = pytest.mark.skipif(not BUSYBOX, reason="no busybox (package busybox-static)")


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    ours, guests = pty.openpty()
    yield ours, guests
    os.close(ours)
    os.close(guests)


def session(terminal: int, script: str) -> subprocess.Popen[bytes]:
    with resources.as_file(resources.files("aiovmm.image").joinpath("session.sh")) as program:
        command: list[str | Path] = [BUSYBOX, "setsid", "-c", BUSYBOX, "sh", program, BUSYBOX, "sh", "-c", script]
        return subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal)


@pytest.mark.parametrize(("script", "status"), [("exit 3", 3), ("kill -9 $$", 137), ("true", 0), ("exec false", 1)])
def test_the_status_is_the_programs(terminal: tuple[int, int], script: str, status: int) -> None:
    assert session(terminal[1], script).wait(HANGS) == status


def test_the_interrupt_key_ends_the_program_and_the_session_tells(terminal: tuple[int, int]) -> None:
    process = session(terminal[1], "echo begin; exec sleep 100")
    assert os.read(terminal[0], 100).startswith(b"begin")
    os.write(terminal[0], b"\3")
    assert process.wait(HANGS) == 128 + 2


def test_a_terminal_that_the_program_took_and_never_gave_back_is_waited_for(terminal: tuple[int, int]) -> None:
    assert session(terminal[1], "set -m; sleep 0.1; echo told; kill -9 $$").wait(HANGS) == 137
    assert b"stty" not in os.read(terminal[0], 1000)  # which would say why it could not wait
