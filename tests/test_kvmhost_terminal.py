"""A terminal of the nested host, connected to a person's: keys, size, interrupt, and a sane terminal afterwards."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import subprocess
import sys
import termios
import time

import pytest

from tests.kvmhost.host import Host
from tests.kvmhost.settings import PROJECT

pytestmark = [pytest.mark.timeout(600), pytest.mark.thorough]


class Person:
    """Sits at a terminal of 24 rows and 80 columns, types and reads."""

    def __init__(self, *arguments: str) -> None:
        self.terminal, other = os.openpty()
        self.resize(24, 80)
        self.before = termios.tcgetattr(other)
        self._other = other
        command = [sys.executable, "-m", "tests.kvmhost", *arguments]
        self.process = subprocess.Popen(
            command, cwd=PROJECT, stdin=other, stdout=other, stderr=subprocess.DEVNULL, start_new_session=True
        )
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: bytes) -> None:
        os.write(self.terminal, text)

    def expect(self, text: bytes, seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            readable, _, _ = select.select([self.terminal], [], [], max(0, deadline - time.monotonic()))
            assert readable, f"{text!r} did not come; what came: {self.seen!r}"
            self.seen += os.read(self.terminal, 4096)
        self.seen = self.seen.split(text, 1)[1]

    def leave(self) -> int:
        status = self.process.wait(timeout=30)
        assert termios.tcgetattr(self._other) == self.before
        os.close(self._other)
        os.close(self.terminal)
        return status


@pytest.mark.usefixtures("kvmhost_unlocked")
def test_a_shell_is_a_terminal_session() -> None:
    person = Person("shell")
    person.type(b"tty; stty size\r")
    person.expect(b"/dev/pts/")
    person.expect(b"24 80")
    person.resize(50, 132)
    person.type(b"until [ \"$(stty size)\" = '50 132' ]; do :; done; echo re''sized\r")
    person.expect(b"resized")
    person.type(b"sh -c 'echo sl\"\"eeps; exec sleep 1238'\r")
    person.expect(b"sleeps")
    person.type(b"\x03")
    person.expect(b"# ")  # the prompt
    person.type(b"echo after $?\r")
    person.expect(b"after 130")
    person.type(b"exit 5\r")
    assert person.leave() == 5


def test_the_terminal_is_restored_when_the_client_is_ended(kvmhost_unlocked: Host) -> None:
    person = Person("run", "--tty", "--", "sh", "-c", "echo up; sleep 1239")
    person.expect(b"up")
    person.process.terminate()
    assert person.leave() == 143
    done = kvmhost_unlocked.run(["sh", "-c", "while pgrep -f '^sleep 1239'; do :; done"], timeout=20)
    assert not done.timed_out
