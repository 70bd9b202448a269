"""Consoles are where the configuration says, in a program as on the command line."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from aiovmm import VM, ConsoleConfig, ConsoleMode, EventKind, ExitReason, HostError, StateError
from aiovmm.errors import ConfigError
from tests.limits import HANGS
from tests.vm.guest import config, event


async def test_a_socket_is_there_from_entering_to_the_end(tmp_path: Path) -> None:
    path = tmp_path / "console"
    async with VM(config("hs", serial=ConsoleConfig(ConsoleMode.SOCKET, path))) as vm:
        assert vm.serial.place == str(path)
        reader, writer = await asyncio.open_unix_connection(path)
        await vm.start()
        assert await asyncio.wait_for(reader.readexactly(6), HANGS) == b"hello\n"
        await vm.serial.expect(rb"hello", timeout=HANGS)
        await vm.kill()
        assert await asyncio.wait_for(reader.read(), HANGS) == b""
        writer.close()
    assert not path.exists()
    assert vm.serial.place == ""


async def test_a_pseudo_terminal_says_where_it_is() -> None:
    async with VM(config("hs", serial=ConsoleConfig(ConsoleMode.PTY))) as vm:
        fd = os.open(vm.serial.place, os.O_RDWR | os.O_NOCTTY)
        try:
            await vm.start()
            said = b""
            while len(said) < 5:  # it comes as it is printed
                said += await asyncio.to_thread(os.read, fd, 5 - len(said))
            assert said == b"hello"
        finally:
            os.close(fd)


async def test_a_file_has_all_that_was_said_when_the_block_is_left(tmp_path: Path) -> None:
    path = tmp_path / "log"
    async with VM(config("ho", serial=ConsoleConfig(ConsoleMode.FILE, path))) as vm:
        await vm.start()
        await asyncio.wait_for(vm.wait(), HANGS)
    assert path.read_bytes() == b"hello\n"


@pytest.mark.parametrize("option", ["serial", "console"])
@pytest.mark.parametrize("mode", [ConsoleMode.SOCKET, ConsoleMode.FILE])
async def test_a_path_that_cannot_be_is_an_error_and_nothing_is_left(option: str, mode: ConsoleMode) -> None:
    place = ConsoleConfig(mode, Path("/proc/nowhere/console"))
    changes: dict[str, Any] = {option: place}
    vm = VM(config("s", **changes))
    with pytest.raises(HostError, match="/proc/nowhere/console"):
        await vm.__aenter__()
    assert vm.status is not None
    assert vm.status.reason is ExitReason.ERROR
    assert "console" in vm.status.detail


async def test_a_file_that_is_there_is_no_socket(tmp_path: Path) -> None:
    (tmp_path / "console").write_text("precious")
    with pytest.raises(ConfigError, match="not a socket"):
        await VM(config("s", serial=ConsoleConfig(ConsoleMode.SOCKET, tmp_path / "console"))).__aenter__()
    assert (tmp_path / "console").read_text() == "precious"


async def test_a_place_that_fails_is_an_event_and_the_guest_goes_on() -> None:
    async with VM(config("hs", serial=ConsoleConfig(ConsoleMode.FILE, Path("/dev/full")))) as vm:
        await vm.start()
        await event(vm, EventKind.DEVICE_ERROR)
        (told,) = [e for e in vm._journal._stream.history if e.kind is EventKind.DEVICE_ERROR]
        assert told.device == "serial"
        assert isinstance(told.error, OSError)
        assert told.error.errno == errno.ENOSPC
        assert vm.state.value == "running"


async def test_a_console_that_is_off_refuses_what_would_never_come() -> None:
    off = ConsoleConfig(ConsoleMode.OFF)
    async with VM(config("s", serial=off)) as vm:
        for console, option in ((vm.serial, "serial"), (vm.console, "console")):
            with pytest.raises(StateError, match=f"no {option}: say {option}=ConsoleConfig"):
                console.write(b"x")
            for waits in (
                console.send(b"x"),
                console.drain(),
                console.read(),
                console.expect(rb"x"),
                console.readline(),
            ):
                with pytest.raises(StateError, match=f"has no {option}"):
                    await asyncio.wait_for(waits, HANGS)
            assert console.history == b""
    assert vm.serial.closed


PROGRAM = """
import asyncio, sys
from aiovmm import VM, ConsoleConfig, ConsoleMode
from tests.vm.guest import config

async def main():
    async with VM(config("ho", serial=ConsoleConfig(ConsoleMode.TTY)), terminal=sys.argv[1] == "yes") as vm:
        await vm.start()
        await vm.wait()
asyncio.run(main())
"""


@pytest.mark.parametrize(("terminal", "shown"), [("yes", b"hello\n"), ("no", b"")])
async def test_standard_output_is_the_terminals_place_unless_the_program_keeps_it(terminal: str, shown: bytes) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, terminal, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await asyncio.wait_for(process.communicate(), 40)
    assert (process.returncode, output) == (0, shown)


def test_one_terminal_for_two_consoles_is_refused_where_the_vm_would_have_to_share_it() -> None:
    tty = ConsoleConfig(ConsoleMode.TTY)
    with pytest.raises(ConfigError, match="both have the terminal"):
        VM(config("s", serial=tty, console=tty))
    VM(config("s", serial=tty, console=tty), terminal=False)
