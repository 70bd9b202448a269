"""Which console the terminal gets. A command line that was written for the reference monitor, where hvc0 is on by default, leaves
no guest that nobody can see."""

from __future__ import annotations

import pytest

from aiovmm.cli.run import command
from aiovmm.config import ConsoleMode, VMConfig
from tests.cli.conftest import Command


def modes(*arguments: str) -> tuple[str, str, VMConfig]:
    """Of ttyS0 and hvc0."""
    from aiovmm.cli.arguments import build_config

    with command.make_context("run", ["--kernel", "k", *arguments]) as context:
        config = build_config(context.params)
    return config.serial.mode.value, config.console.mode.value, config


@pytest.mark.parametrize(
    ("arguments", "serial", "console"),
    [
        ([], "tty", "null"),
        (["--cmdline", "console=hvc0"], "null", "tty"),
        (["--cmdline", "console=ttyS0 console=hvc0 quiet"], "null", "tty"),
        (["--cmdline", "console=hvc0 console=ttyS0,115200"], "tty", "null"),
        (["--cmdline", "quiet"], "tty", "tty"),
        (["--cmdline", ""], "tty", "tty"),
        (["--serial", "tty"], "tty", "null"),
        (["--serial", "tty", "--cmdline", "console=hvc0"], "tty", "tty"),
        (["--serial", "tty", "--cmdline", "console=ttyS0"], "tty", "null"),
        (["--serial", "off"], "off", "tty"),
        (["--serial", "null"], "null", "tty"),
        (["--serial", "null", "--cmdline", "console=ttyS0"], "null", "tty"),
        (["--serial", "socket=/tmp/s"], "socket", "null"),
        (["--serial", "file=/tmp/s", "--cmdline", "console=hvc0"], "file", "tty"),
        (["--console", "file=/tmp/s"], "tty", "file"),
        (["--console", "socket=/tmp/s", "--cmdline", "console=hvc0"], "null", "socket"),
        (["--console", "off"], "tty", "off"),
        (["--console", "null"], "tty", "null"),
        (["--console", "tty"], "null", "tty"),
        (["--console", "tty", "--cmdline", "console=ttyS0"], "tty", "tty"),
        (["--serial", "tty", "--console", "off"], "tty", "off"),
        (["--serial", "tty", "--console", "tty"], "tty", "tty"),
        (["--serial", "null", "--console", "off"], "null", "off"),
    ],
    ids=" ".join,
)
def test_who_gets_the_terminal(arguments: list[str], serial: str, console: str) -> None:
    assert modes(*arguments)[:2] == (serial, console)


@pytest.mark.parametrize(
    "arguments", [[], ["--serial", "tty"], ["--serial", "off"], ["--console", "off"]], ids=" ".join
)
def test_the_command_line_that_is_made_names_what_can_be_seen(arguments: list[str]) -> None:
    serial, console, config = modes(*arguments)
    last = [word for word in config.cmdline.split() if word.startswith("console=")][-1]
    seen = {"console=ttyS0": serial, "console=hvc0": console}[last]
    assert seen == ConsoleMode.TTY.value


def test_what_both_say_is_on_the_terminal(aiovmm: Command, guest: list[str]) -> None:
    """The guest of these tests speaks on ttyS0; what is typed goes there too, as nothing names hvc0."""
    done = aiovmm.run(*guest, "--cmdline", "heo", "--serial", "tty", "--console", "tty", stdin=b"typed q")
    assert (done.returncode, done.stdout) == (0, b"hello\ntyped q"), done.stderr


def test_it_is_on_the_terminal_also_where_hvc0_comes_first(aiovmm: Command, guest: list[str]) -> None:
    done = aiovmm.run(*guest, "--cmdline", "ho console=hvc0", "--serial", "tty")
    assert (done.returncode, done.stdout) == (0, b"hello\n"), done.stderr


def test_a_guest_that_was_told_to_be_mute_is_said_to_be(aiovmm: Command, guest: list[str]) -> None:
    for mode in ("null", "off"):
        done = aiovmm.run(*guest, "--cmdline", "ho", "--serial", mode, "--console", "off")
        assert (done.returncode, done.stdout) == (0, b"")
        assert done.stderr == b"aiovmm: no console of the guest is shown (--serial tty shows one)\n"
