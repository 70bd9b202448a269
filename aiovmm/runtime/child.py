"""A process of the host's that does one thing, awaited by a descriptor of it.

How the end of asyncio's own subprocesses is told depends on the event loop: by the signal SIGCHLD, which is the whole program's,
by a thread for each, or not before the end of all pipes, which whoever the process has started may hold open. A pidfd is readable
when this one process has ended, on any loop. What it says goes into files in memory, and is there as a whole then; of one that
lives for long its last words are kept, or all is heard as it comes (last_words.py).
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from aiovmm.errors import printable
from aiovmm.runtime.last_words import LastWords
from aiovmm.runtime.tasks import finish

__all__ = ["Child"]

_UNKNOWN = 255  # the status of one whose end somebody else was told


class Child:
    """`command`, begun in a session of its own, with `pass_fds` under the same numbers. Where `held` its standard input ends with
    this object or this process; else there is none. `stdout` and `stderr`: whether what it says there is kept; `last_words`: how
    many bytes of the end of its standard error, if that is not kept as a whole; `hear` is called with all that it says on either.
    Raises OSError."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        pass_fds: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
        held: bool = False,
        stdout: bool = False,
        stderr: bool = False,
        last_words: int = 0,
        hear: Callable[[bytes], object] | None = None,
    ) -> None:
        self.returncode: int | None = None
        self._outputs = [subprocess.DEVNULL] * 2
        self._words: LastWords | None = None
        try:
            for stream, kept in enumerate((stdout, stderr)):
                if kept:
                    self._outputs[stream] = os.memfd_create("output", os.MFD_CLOEXEC)
            if hear is not None:
                self._words = LastWords(last_words, hear)
            elif last_words:
                self._words = LastWords(last_words)
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if held else subprocess.DEVNULL,
                stdout=self._outputs[0] if hear is None or self._words is None else self._words.fd,
                stderr=self._outputs[1] if self._words is None else self._words.fd,
                pass_fds=pass_fds,
                env=env,
                start_new_session=True,  # a Ctrl-C at the terminal is not for it
            )
        except BaseException:
            self._close_outputs()
            raise
        self._begun()

    def _begun(self) -> None:
        if self._words is not None:
            self._words.begun()
        try:
            self._pidfd = os.pidfd_open(self._process.pid)
        except BaseException:
            self._process.kill()
            self._process.wait()
            self._close()
            raise

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def wait(self) -> int:
        """Its status, or the number of the signal that ended it, below zero; 255 if somebody else was told. For one caller at a
        time; one who is cancelled may wait again."""
        if self.returncode is None:
            loop = asyncio.get_running_loop()
            ended: asyncio.Future[None] = loop.create_future()
            loop.add_reader(self._pidfd, _settle, ended)
            try:
                await ended
            finally:
                loop.remove_reader(self._pidfd)
            self.returncode = self._reaped()
        return self.returncode

    def _reaped(self) -> int:
        try:
            _, status = os.waitpid(self._process.pid, 0)
        except ChildProcessError:  # a program that reaps whatever child ends has it
            return _UNKNOWN
        finally:
            self._process.returncode = _UNKNOWN  # nobody is to wait for a number that may be another's
        return os.waitstatus_to_exitcode(status)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """A signal, if it has not ended. A confined monitor may signal its children by their numbers alone, of which nobody else
        has one as long as it has not heard of their end."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                try:
                    signal.pidfd_send_signal(self._pidfd, number)
                except PermissionError:
                    os.kill(self._process.pid, number)

    def said(self, stream: int, most: int) -> bytes:
        """The last `most` bytes that it has said on `stream`, 1 or 2, so far."""
        if stream == 2 and self._words is not None:
            return self._words.said()[-most:]
        fd = self._outputs[stream - 1]
        return os.pread(fd, most, max(0, os.fstat(fd).st_size - most)) if fd >= 0 else b""

    def complaint(self, most: int) -> str:
        """The end of what it has said on standard error, for an error's text: one line that can be printed, which may take ten
        times as many characters as there were bytes, and has at most `most`."""
        return printable(self.said(2, most).decode(errors="replace").strip())[-most:]

    async def aclose_after(self, patience: float) -> None:
        """The same once it has had `patience` seconds to end by itself."""
        from aiovmm.runtime.awake import awake_timeout  # not at a start

        try:
            with suppress(TimeoutError):
                async with awake_timeout(patience):
                    await self.wait()
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Kill it if it runs, and forget what it has said. Idempotent; completes even if the caller is cancelled."""
        self.kill()
        try:
            await finish(self.wait())
        finally:
            self._close()

    def _close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        pidfd, self._pidfd = getattr(self, "_pidfd", -1), -1
        if pidfd >= 0:
            os.close(pidfd)
        self._close_outputs()

    def _close_outputs(self) -> None:
        if self._words is not None:
            self._words.close()
        outputs, self._outputs = self._outputs, [subprocess.DEVNULL] * 2
        for fd in outputs:
            if fd >= 0:
                os.close(fd)


def _settle(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)
