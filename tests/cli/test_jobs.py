"""`aiovmm run` under a shell with job control: in the background, brought to the foreground, stopped, and sent back."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import shlex
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.test_run import DEADLINE

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")

LATE = """
import os, time
from pathlib import Path
from aiovmm.cli import main, menu
from aiovmm.console.fds import OwnedFd

def refused():
    Path("refused").touch()
    while os.tcgetpgrp(0) != os.getpgrp():
        time.sleep(0.01)

async def late(self, *size):
    data = await read(self, *size)
    if not data:
        refused()
    return data

def late_now(*args):
    try:
        return read_now(*args)
    except OSError as exc:
        if not isinstance(exc, BlockingIOError):
            refused()
        raise

read, OwnedFd.read = OwnedFd.read, late
read_now, menu.read_now = menu.read_now, late_now
menu.in_foreground = lambda fd: True  # as it was when it began to wait
main()
"""
"""aiovmm, which gets no processor from when a read in the background was refused until it is in the foreground again."""


class Shell:
    """An interactive bash in a terminal of its own; the test is the person before it."""

    def __init__(self, directory: Path, guest: list[str], program: list[str]) -> None:
        self.master, slave = pty.openpty()
        self.slave = slave
        environment = {**os.environ, "PS1": "$ ", "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(directory)}
        self._process = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "--noediting", "-i"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=directory,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self._seen = b""
        self._aiovmm = shlex.join([sys.executable, *program, *guest])
        self.sees("$ ")

    def aiovmm(self, does: str) -> str:
        """The command for a guest that does this."""
        return f"{self._aiovmm} --cmdline {does} --stop-timeout 0.2"

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def sees(self, what: str) -> str:
        """What comes up to and with `what`."""
        mark, deadline = what.encode(), time.monotonic() + DEADLINE
        while mark not in self._seen:
            assert select.select([self.master], [], [], max(0, deadline - time.monotonic()))[0], self._seen
            self._seen += os.read(self.master, 4096)
        end = self._seen.index(mark) + len(mark)
        shown, self._seen = self._seen[:end], self._seen[end:]
        return shown.decode()

    def does(self, line: str) -> str:
        """What a command prints, which must end."""
        self.type(f"{line}; echo en''d\n")
        self.sees("en''d")
        return self.sees("end\r\n").removesuffix("end\r\n")

    def raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[3] & termios.ICANON

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, self._seen
            time.sleep(0.01)

    def modes(self) -> list[object]:
        return termios.tcgetattr(self.slave)

    @property
    def pid(self) -> int:
        return self._process.pid

    def children(self) -> list[int]:
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            for pid in self.children():
                os.kill(pid, signal.SIGKILL)
            self._process.kill()
        self._process.wait(DEADLINE)
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def program() -> list[str]:
    """What Python is to run."""
    return ["-m", "aiovmm"]


@pytest.fixture
def shell(guest: list[str], tmp_path: Path, program: list[str]) -> Iterator[Shell]:
    shell = Shell(tmp_path, guest, program)
    yield shell
    shell.close()


@pytest.mark.parametrize("tostop", [False, True], ids=["", "tostop"])
def test_in_the_background_it_shows_and_ends(shell: Shell, tostop: bool) -> None:
    if tostop:
        shell.does("stty tostop")
    before = shell.modes()
    shell.type(shell.aiovmm("ho") + " &\n")
    shell.sees("hello")
    assert "code=0" in shell.does("wait %1; echo code=$?")
    assert shell.modes() == before


@pytest.mark.parametrize("tostop", [False, True], ids=["", "tostop"])
def test_in_the_background_it_heeds_signals(shell: Shell, tostop: bool) -> None:
    if tostop:
        shell.does("stty tostop")
    shell.type(shell.aiovmm("hw") + " >/dev/tty &\n")
    shell.sees("hello")
    shell.type("kill %1\n")
    assert "code=1" in shell.does("wait %1; echo code=$?")


def test_timeout_ends_it(shell: Shell) -> None:
    """timeout(1) puts it into a process group of its own, which is in the background."""
    assert "code=124" in shell.does(f"timeout -k 20 2s {shell.aiovmm('hs')}; echo code=$?")


def test_the_shell_keeps_its_keys_until_it_gives_them(shell: Shell) -> None:
    before = shell.modes()
    shell.type(shell.aiovmm("heo") + " &\n")
    shell.sees("hello")
    for _ in range(3):
        assert "mine" in shell.does("echo mi''ne")
    shell.type("fg\n")
    shell.until(shell.raw)
    shell.type("abcq")
    shell.sees("abcq")
    shell.sees("$ ")
    assert shell.modes() == before


def test_stopped_sent_back_and_brought_forth(shell: Shell) -> None:
    before = shell.modes()
    shell.type(shell.aiovmm("heo") + "\n")
    shell.sees("hello")
    shell.until(shell.raw)
    (pid,) = shell.children()
    for stop in (signal.SIGTSTP, signal.SIGSTOP, signal.SIGTSTP):
        os.kill(pid, stop)
        shell.sees("Stopped")
        shell.sees("$ ")
        assert not shell.raw()
        assert "mine" in shell.does("echo mi''ne")
        shell.type("bg\n")
        shell.sees("&")
        assert "mine" in shell.does("echo mi''ne")
        shell.type("fg\n")
        shell.until(shell.raw)
        shell.type("xyz")
        shell.sees("xyz")
    shell.type("q")
    shell.sees("$ ")
    assert shell.modes() == before


@pytest.mark.parametrize("program", [["-c", LATE]], ids=[""])
@pytest.mark.parametrize(
    ("keys", "seen", "again"), [("", "", ""), ("\x10\x11", "the guest runs on", "a\n")], ids=["attached", "at the menu"]
)
def test_brought_forth_just_when_a_read_was_refused(shell: Shell, keys: str, seen: str, again: str) -> None:
    """It wakes for a line that the shell has not read yet, may not read it, and is in the foreground when it asks why."""
    shell.type(shell.aiovmm("heo") + "\n")
    shell.sees("hello")
    shell.until(shell.raw)
    shell.type(keys)
    shell.sees(seen)
    (pid,) = shell.children()
    os.kill(pid, signal.SIGSTOP)
    shell.sees("Stopped")
    shell.type("bg; until [ -e refused ]; do sleep 0.1; done\n")
    assert "mine" in shell.does("echo mi''ne")
    shell.type("fg\n")
    shell.until(lambda: os.tcgetpgrp(shell.master) != shell.pid)
    shell.type(again)
    shell.until(shell.raw)
    shell.type("xyzq")
    shell.sees("xyzq")
    shell.sees("$ ")


def test_detached_and_sent_to_the_background(shell: Shell) -> None:
    """At the menu too the keys are the shell's when it has the terminal."""
    shell.type(shell.aiovmm("heo") + "\n")
    shell.sees("hello")
    shell.until(shell.raw)
    shell.type("\x10\x11")
    shell.sees("the guest runs on")
    shell.type("\x1a")
    shell.sees("Stopped")
    shell.type("bg\n")
    shell.sees("&")
    for _ in range(3):
        assert "mine" in shell.does("echo mi''ne")
    shell.type("fg\n")
    shell.sees("aiovmm")
    shell.until(lambda: os.tcgetpgrp(shell.master) != shell.pid)
    shell.type("a\n")
    shell.sees("hello")
    shell.type("q")
    shell.sees("$ ")
