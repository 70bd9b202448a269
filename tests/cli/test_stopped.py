"""A monitor that is stopped for some seconds (SIGSTOP), as by a terminal, a debugger or a host that is short of memory."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.limits import HANGS

QUIET, IDLE, SECONDS = 0.4, 2.0, 2.5  # the first has it seen that the guest has been busy until then


def stand_still(process: subprocess.Popen[bytes], seconds: float) -> None:
    """All of its threads: what passes meanwhile is the fault."""
    os.kill(process.pid, signal.SIGSTOP)
    end = time.monotonic() + 30
    while not all(" (" in stat and ") T" in stat for stat in stats_of(process.pid)):
        assert time.monotonic() < end
    time.sleep(seconds)
    os.kill(process.pid, signal.SIGCONT)


def stats_of(pid: int) -> list[str]:
    return [(task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]


@pytest.mark.parametrize("told", [True, False], ids=["to end", "by its limit"])
def test_time_in_which_it_was_stopped_is_in_no_limit(told: bool, aiovmm: Command, guest: list[str]) -> None:
    """The guest has had none of it, so it is not killed: it powers off when it is given a letter."""
    limit = ["--stop-timeout", f"{IDLE}"] if told else ["--limits", f"lifetime={IDLE}"]
    process = aiovmm.start(*guest, "--cmdline", "heo", *limit, "--json", "2")
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(6) == b"hello\n"
    if told:
        process.terminate()
        assert any(b"power-button" in line for line in process.stderr)
    stand_still(process, SECONDS)
    out, error = process.communicate(b"q", timeout=HANGS)
    assert (process.returncode, out) == (0, b"q"), error


@pytest.mark.parametrize("more", [[], ["--limits", f"idle={IDLE}"]], ids=["plain", "idle"])
def test_it_goes_on_as_if_nothing_had_been(more: list[str], aiovmm: Command, guest: list[str]) -> None:
    """Nobody takes its guest for one that hangs or idles: it stood still as well."""
    process = aiovmm.start(*guest, "--cmdline", "hl", "--watchdog", "action=reset", *more)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.read(6) == b"hello\n"
    for letter in (b"a", b"b"):
        process.stdin.write(letter)
        process.stdin.flush()
        assert process.stdout.read(1) == letter
        time.sleep(QUIET)
        stand_still(process, SECONDS)
    process.stdin.write(b"c")
    process.stdin.flush()
    assert process.stdout.read(1) == b"c"
    process.send_signal(signal.SIGHUP)
    _, error = process.communicate(timeout=HANGS)
    assert b"Traceback" not in error
    assert b"by SIGHUP" in error
