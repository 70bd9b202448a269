"""A console's output in a file."""

from __future__ import annotations

import os
import stat
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from aiovmm.console.backends.base import ConsoleBackend
from aiovmm.console.fds import OwnedFd
from aiovmm.console.guard import OutputGuard
from aiovmm.console.pieces import in_pieces
from aiovmm.console.stream import Console
from aiovmm.console.terminal import AttachEnd
from aiovmm.errors import HostError, host_error
from aiovmm.runtime import ofdlock
from aiovmm.runtime.hands import Hands
from aiovmm.runtime.output_file import is_stream, open_output_file
from aiovmm.runtime.tasks import opened_in_thread

if TYPE_CHECKING:
    from aiofiles.threadpool.binary import AsyncFileIO

__all__ = ["FileBackend"]


class FileBackend(ConsoleBackend):
    """Writes all output, from the beginning of the history, to the file `path`, off the loop, or to the FIFO, pipe or terminal
    there, as far as that takes it. There is no input; so a terminal is shown what draws alone: what it would answer, or be told
    to do, is for whoever has it.

    A file is emptied first unless `append`; aiovmm.runtime.output_file says which files are refused, and whose a new one
    is. A disk that is slower than the guest loses the oldest output (`lost`).
    """

    def __init__(self, console: Console, path: str | os.PathLike[str], *, append: bool = False) -> None:
        super().__init__(console)
        self._path = Path(path)
        self._mode = "ab" if append else "wb"
        self._reader = console.reader()
        self._file: AsyncFileIO | None = None
        self._stream: OwnedFd | None = None
        self._guard: OutputGuard | None = None
        self._whose = ": ".join(console.name.rsplit(".", 1)) + " file"
        self._thread = Hands(1, self._whose)  # the loop's are the embedder's to fill
        self._writing = False

    @property
    def place(self) -> str:
        """The path of the file."""
        return str(self._path)

    @property
    def lost(self) -> int:
        """Bytes of output that are not in the file."""
        return self._reader.lost

    async def _open(self) -> None:
        append = self._mode == "ab"
        doing = "open the console's file"
        fd = await opened_in_thread(
            f"{self._whose}: open", os.close, open_output_file, self._path, "file", doing, append=append
        )
        if is_stream(fd):
            self._stream = OwnedFd(fd, shared=stat.S_ISSOCK(os.fstat(fd).st_mode))
            self._guard = OutputGuard() if os.isatty(fd) else None
        else:
            self._raw = FileIO(fd, self._mode)
            self._file = _in_threads(self._raw, self._thread)

    async def _run(self) -> AttachEnd:
        try:
            async for data in self._reader:
                await self._write(data)
        except OSError as exc:
            self._writing = False
            raise HostError("write the console's output", exc.errno or 0, path=str(self._path)) from exc
        except RuntimeError as exc:  # there is no thread that would
            self._writing = False
            raise (host_error("write the console's output", exc) or exc) from None
        return AttachEnd.GUEST_ENDED

    async def _write(self, data: bytes) -> None:
        if self._stream is not None and self._guard is not None:
            async for piece in in_pieces(data):
                await self._stream.write(self._guard.feed(piece))
            return
        if self._stream is not None:
            await self._stream.write(data)
            return
        assert self._file is not None
        view = memoryview(data)
        while view:
            self._writing = True
            view = view[await self._file.write(view) :]
            self._writing = False

    def _finish(self) -> None:
        self._reader.close()

    def _progress(self) -> object:
        return self._reader.position

    async def _close(self) -> None:
        self._reader.close()
        if self._stream is not None:
            self._stream.close()
        if self._file is not None:
            file, self._file = self._file, None
            if not self._writing:  # else a thread is stuck in it yet, and the file closes when that lets go of it
                ofdlock.unlock(file.fileno())
                try:
                    await file.close()
                except RuntimeError:  # nor one that closes it
                    self._raw.close()
        self._thread.shutdown(wait=False)


def _in_threads(file: FileIO, executor: Hands) -> AsyncFileIO:
    """The open file, whose writes are made in threads; closed with it."""
    from aiofiles.threadpool import wrap  # for this back end only

    return wrap(file, executor=executor)  # type: ignore[no-any-return]
