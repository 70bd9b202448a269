"""`aiovmm run` in a person's terminal: typing, detaching, the menu, and the terminal as it was afterwards."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import termios
from collections.abc import Iterator

import pytest

from tests.cli.conftest import Command
from tests.cli.test_run import DEADLINE, read_until

DETACH = b"\x10\x11"  # ctrl-p ctrl-q


class Person:
    """At a terminal, in which `aiovmm run` was started."""

    def __init__(self, aiovmm: Command, arguments: list[str]) -> None:
        self.master, slave = pty.openpty()
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.screen = os.fdopen(self.master, "rb", buffering=0)
        self.process = aiovmm.start(*arguments, stdin=slave, stdout=slave, stderr=subprocess.PIPE)

    def type(self, data: bytes) -> None:
        os.write(self.master, data)

    def sees(self, what: bytes) -> bytes:
        return read_until(self.screen, what)

    def ends(self, code: int) -> None:
        assert self.process.wait(DEADLINE) == code
        assert termios.tcgetattr(self.slave) == self.before

    def close(self) -> None:
        self.screen.close()
        os.close(self.slave)


@pytest.fixture
def person(aiovmm: Command, guest: list[str], request: pytest.FixtureRequest) -> Iterator[Person]:
    cmdline, *options = request.param.split()
    person = Person(aiovmm, [*guest, "--cmdline", cmdline, "--stop-timeout", "0.2", *options])
    yield person
    person.close()


@pytest.mark.parametrize("person", ["heo"], indirect=True)
def test_typing(person: Person) -> None:
    person.sees(b"hello\n")
    person.type(b"abc\x03\x1b[A")
    person.sees(b"abc\x03\x1b[A")  # ctrl-c and keys reach the guest, nothing is echoed but by it
    person.type(b"q")
    person.ends(0)


def test_a_terminal_for_the_output_alone(aiovmm: Command, guest: list[str]) -> None:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    process = aiovmm.start(*guest, "--cmdline", "cho  ", stdin=subprocess.DEVNULL, stdout=slave, stderr=subprocess.PIPE)
    with os.fdopen(master, "rb", buffering=0) as screen:
        read_until(screen, b"hello\n")  # not \r\n: a guest's lines end as it ends them
        assert process.wait(DEADLINE) == 0
        assert termios.tcgetattr(slave) == before
        os.close(slave)


@pytest.mark.parametrize(
    ("person", "shown"),
    [
        ("heo", b"\x1b]52;c;eA==\x07\x1b[6n\x1b[31mred"),
        ("heo --serial tty,filter=on", b"\x1b[31mred"),
        ("heo --serial tty --debug-console tty,filter=on", b"\x1b[31mred"),  # it prints to either
    ],
    indirect=["person"],
)
def test_a_terminal_of_which_one_console_is_filtered_is_shown_what_draws_alone(person: Person, shown: bytes) -> None:
    person.sees(b"hello\n")
    person.type(b"\x1b]52;c;eA==\x07\x1b[6n\x1b[31mred")
    assert person.sees(b"red") == shown
    person.type(b"q")
    person.ends(0)


@pytest.mark.parametrize("person", ["heo"], indirect=True)
def test_detach_and_attach_again(person: Person) -> None:
    person.sees(b"hello\n")
    person.type(DETACH)
    person.sees(b"the guest runs on")
    assert termios.tcgetattr(person.slave)[3] & termios.ICANON
    person.type(b"a\n")
    person.sees(b"hello\n")  # the history
    person.type(b"q")
    person.sees(b"q")
    person.ends(0)


@pytest.mark.parametrize(("person", "key", "code"), [("hb", b"k", 1), ("hbo", b"p", 0)], indirect=["person"])
def test_the_menu_ends_the_guest(person: Person, key: bytes, code: int) -> None:
    person.sees(b"hello\n")
    person.type(DETACH)
    person.sees(b"the guest runs on")
    person.type(b"nonsense\n")
    person.sees(b"the guest runs on")
    person.type(key + b"\n")
    person.ends(code)


@pytest.mark.parametrize("person", ["hs"], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_as_it_was_after_a_signal(person: Person, number: int) -> None:
    person.sees(b"hello\n")
    person.process.send_signal(number)
    person.ends(1)


@pytest.mark.parametrize("person", ["hb"], indirect=True)
def test_the_end_of_input_at_the_menu_asks_nobody_further(person: Person) -> None:
    person.sees(b"hello\n")
    person.type(DETACH)
    person.sees(b"the guest runs on")
    person.type(b"\x04")
    with pytest.raises(subprocess.TimeoutExpired):
        person.process.wait(0.3)
    person.process.send_signal(signal.SIGHUP)
    person.ends(1)
