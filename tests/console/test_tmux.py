"""A real terminal: a shell in tmux, the session in it, and the shell afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.limits import HANGS

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")

ROOT = Path(__file__).resolve().parents[2]
SESSION = f"{sys.executable} -m tests.console.session"


class Tmux:
    def __init__(self, directory: Path) -> None:
        self._socket = directory / "tmux"
        self("-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "30", "-c", str(ROOT), "env PS1='$ ' sh")

    def __call__(self, *arguments: str) -> str:
        command = ["tmux", "-S", str(self._socket), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=HANGS).stdout

    def type(self, text: str) -> None:
        self("send-keys", "-l", text)

    def keys(self, *keys: str) -> None:
        self("send-keys", *keys)

    def until(self, text: str, times: int = 1) -> str:
        """What the terminal shows, once it shows `text`."""
        deadline = time.monotonic() + HANGS
        while (shown := self("capture-pane", "-p", "-S", "-")).count(text) < times:
            assert time.monotonic() < deadline, f"no {text!r} in:\n{shown}"
            time.sleep(0.05)
        return shown

    def child(self) -> int:
        """The process that the shell runs."""
        shell = self("list-panes", "-F", "#{pane_pid}").strip()
        return int(Path(f"/proc/{shell}/task/{shell}/children").read_text().split()[0])


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[Tmux]:
    tmux = Tmux(tmp_path)
    yield tmux
    tmux("kill-server")


def check_sane(tmux: Tmux) -> None:
    """The shell echoes, edits lines, and its reads wait."""
    tmux.type("stty -a; cat /proc/self/fdinfo/0; echo che''cked\r")
    shown = tmux.until("checked")
    assert {"icanon", "echo", "isig", "icrnl", "opost"} <= set(shown.split())
    flags = next(line for line in shown.splitlines() if line.startswith("flags:"))
    assert not int(flags.split()[1], 8) & os.O_NONBLOCK


def test_a_session(tmux: Tmux) -> None:
    tmux.type(SESSION + "\r")
    tmux.until("guest is up")
    tmux.until("[100x30]")
    tmux.type("hello")
    tmux.until("hello")
    tmux.keys("C-c")
    tmux.until("[interrupt]")
    tmux("resize-window", "-x", "90", "-y", "25")
    tmux.until("[90x25]")
    tmux.keys("C-p", "C-q")
    tmux.until("ended: detached")
    tmux.until("guest is up", times=2)
    tmux.type("again")
    tmux.until("[90x25]again")
    tmux.keys("C-p", "C-q")
    tmux.until("ended: detached", times=2)
    check_sane(tmux)


def test_a_kill_leaves_the_terminal_sane(tmux: Tmux) -> None:
    tmux.type(SESSION + "\r")
    tmux.until("[100x30]")
    os.kill(tmux.child(), 15)
    tmux.until("cancelled")
    check_sane(tmux)


def test_being_stopped_by_the_worst_kill_does_not_make_the_shells_reads_fail(tmux: Tmux) -> None:
    """The modes cannot be restored then, but O_NONBLOCK must not have been set on what the shell shares."""
    tmux.type(SESSION + "\r")
    tmux.until("[100x30]")
    os.kill(tmux.child(), 9)
    tmux.until("Killed")
    tmux.type("stty sane; echo restored")
    tmux.keys("C-j")
    tmux.until("restored")
    check_sane(tmux)
