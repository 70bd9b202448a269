"""A process in a guest joined to this command's own standard streams, or to its terminal, until it ends."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from aiovmm.cli.messages import say
from aiovmm.console.fds import Descriptor, open_end
from aiovmm.console.guard import OutputGuard
from aiovmm.errors import AiovmmError, ConsoleEnded, HostError, UsageError
from aiovmm.runtime.stdio import heed

if TYPE_CHECKING:
    from aiovmm.agent.process import Process

__all__ = ["carry", "exit_code", "require_terminal"]

_CHUNK = 64 << 10
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def require_terminal() -> None:
    """Before anything is begun for a command that is to have this terminal. Raises UsageError."""
    if not (os.isatty(0) or os.isatty(1)):
        raise UsageError(
            "--tty: standard input and output are not a terminal; without it they are the command's as they are"
        )


async def carry(process: Process, *, terminal: bool, filtered: bool = False) -> int:
    """The code that this command is to end with: the process's status, or 128 and the number of its signal, as shells say it.

    Signals go to the process. With `terminal` its terminal is ours; `filtered`: that is shown what draws alone. Where our output
    cannot be written any more, or the terminal is gone, it is ended. Raises HostError if that is not because nobody reads it."""
    try:
        if terminal:
            if not await _on_terminal(process, filtered=filtered):
                return exit_code(-signal.SIGHUP)
        elif not await _on_streams(process):
            return exit_code(-signal.SIGPIPE)
        return exit_code(await process.wait())
    finally:
        process.close()


def exit_code(returncode: int) -> int:
    """As shells say it."""
    return returncode if returncode >= 0 else 128 - returncode


async def _on_terminal(process: Process, *, filtered: bool) -> bool:
    """Whether it was there to the end."""
    from aiovmm.cli.jobs import follow_job_control
    from aiovmm.console import AttachEnd, Terminal
    from aiovmm.console.attach import run_session

    terminal = Terminal(filtered=filtered)
    follow_job_control(terminal)
    return await run_session(terminal, _Side(process), b"") is not AttachEnd.TERMINAL_CLOSED


class _Side:
    """The process as the far side of a terminal (console.terminal.FarSide)."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._in, self._out = process.stdin, process.stdout
        self.resize = process.resize

    async def read(self) -> bytes:
        return await self._out.read(_CHUNK)

    async def send(self, data: bytes) -> None:
        try:
            self._in.write(data)
            await self._in.drain()
        except BrokenPipeError as exc:
            raise ConsoleEnded("the process in the guest has ended") from exc


async def _on_streams(process: Process) -> bool:
    """Whether all could be written."""
    loop = asyncio.get_running_loop()
    heed(*_FORWARDED, by=partial(_forward, process))
    keys = open_end(0, os.O_RDONLY)
    ends = [open_end(1, os.O_WRONLY), open_end(2, os.O_WRONLY)]
    feeding = loop.create_task(_feed(process, keys))
    try:
        async with asyncio.TaskGroup() as group:
            for fd, stream, end in zip((1, 2), (process.stdout, process.stderr), ends, strict=True):
                group.create_task(_show(stream, end, OutputGuard() if os.isatty(fd) else None))
    except* BrokenPipeError:  # who read our output has enough
        written = False
    except* OSError as failed:
        raise _unwritten(failed) from None
    else:
        written = True
    finally:
        feeding.cancel()
        await asyncio.wait([feeding])
        for end in (keys, *ends):
            end.close()
    return written


def _unwritten(failed: ExceptionGroup[OSError]) -> HostError:
    error = failed.exceptions[0]
    assert isinstance(error, OSError)
    return HostError("writing what the command printed", error.errno or errno.EIO)


def _forward(process: Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        process.send_signal(number)


async def _feed(process: Process, keys: Descriptor) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError, AiovmmError):
        while data := await _read(keys):
            process.stdin.write(data)
            await process.stdin.drain()
    process.stdin.write_eof()


async def _read(keys: Descriptor) -> bytes:
    """What cannot be read is its end for the command, and said: it may take half of a file for a whole one."""
    try:
        return await keys.read(_CHUNK)
    except OSError as exc:
        say(f"standard input cannot be read: {exc.strerror}")
        return b""


async def _show(stream: asyncio.StreamReader | None, end: Descriptor, guard: OutputGuard | None) -> None:
    """A terminal that was not given to the process (`--tty`) is none of its: it is shown what draws alone, in any case."""
    while stream is not None and (data := await stream.read(_CHUNK)):
        await end.write(data if guard is None else guard.feed(data))
