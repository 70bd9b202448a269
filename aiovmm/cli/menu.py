"""What a person who has detached is asked."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from aiovmm.cli.messages import say
from aiovmm.console import Terminal
from aiovmm.console.modes import hung_up, in_foreground
from aiovmm.lifecycle import VMState
from aiovmm.runtime.nowait import read_now
from aiovmm.vm import VM

__all__ = ["menu"]

_MENU = "[detached; the guest runs on]  a: attach again   p: power button   k: kill   "
_LOOK = 0.5  # seconds between looks whether we have been brought to the foreground


async def menu(vm: VM, terminal: Terminal) -> bool:
    """What to do while detached; True to attach again, False when the guest has ended or nobody is there to be asked."""
    ended = asyncio.ensure_future(vm.wait())
    try:
        while True:
            _ask(terminal)
            line = await _line_unless(ended, terminal)
            if line is None:
                return False
            match line.lower()[:1]:
                case b"a":
                    return True
                case b"p" if vm.state is VMState.RUNNING:
                    vm.shutdown()
                case b"k":
                    await vm.kill("from the keyboard")
                case b"":  # the end of input
                    return False
    finally:
        ended.cancel()


async def _line_unless(ended: asyncio.Future[Any], terminal: Terminal) -> bytes | None:
    """What is typed next, or None if the guest ends first. Nobody reads the terminal any more when this is left, in any way."""
    line = asyncio.ensure_future(_line(terminal.input_fd))  # the terminal is in line mode
    try:
        await asyncio.wait([line, ended], return_when=asyncio.FIRST_COMPLETED)
        return None if ended.done() else line.result()
    finally:
        if not line.done():
            line.cancel()
            await asyncio.wait([line])


def _ask(terminal: Terminal) -> None:
    """Where the person looks: standard output may go to a file."""
    try:
        print(f"\r\n{_MENU}", end="", flush=True, file=sys.stdout if terminal.output_is_terminal else sys.stderr)
    except OSError as exc:
        say(f"the menu cannot be shown: {exc.strerror}")


async def _line(fd: int) -> bytes:
    """What is typed next; nothing is read while a shell has the terminal."""
    loop = asyncio.get_running_loop()
    while True:
        while not in_foreground(fd):  # noqa: ASYNC110 (no event tells)
            await asyncio.sleep(_LOOK)
        ready = asyncio.Event()
        loop.add_reader(fd, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(fd)
        try:
            return read_now(fd, 256)
        except BlockingIOError:  # somebody else has read it
            continue
        except OSError:
            if hung_up(fd):
                return b""
