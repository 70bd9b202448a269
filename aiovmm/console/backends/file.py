"""A console's output in a file."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

from aiovmm.console.backends.base import ConsoleBackend
from aiovmm.console.stream import Console
from aiovmm.console.terminal import AttachEnd
from aiovmm.errors import HostError
from aiovmm.runtime import ofdlock
from aiovmm.runtime.hands import Hands

if TYPE_CHECKING:
    from aiofiles.threadpool.binary import AsyncFileIO

__all__ = ["FileBackend"]


class FileBackend(ConsoleBackend):
    """Writes all output, from the beginning of the history, to the file `path`, off the loop. There is no input.

    The file is emptied first unless `append`; aiovmm.runtime.output_file says which files are refused, and whose a new one
    is. A disk that is slower than the guest loses the oldest output (`lost`).
    """

    def __init__(self, console: Console, path: str | os.PathLike[str], *, append: bool = False) -> None:
        super().__init__(console)
        self._path = Path(path)
        self._mode = "ab" if append else "wb"
        self._reader = console.reader()
        self._file: AsyncFileIO | None = None
        whose = ": ".join(console.name.rsplit(".", 1))
        self._thread = Hands(1, f"{whose} file")  # the loop's are the embedder's to fill
        self._writing = False

    @property
    def place(self) -> str:
        return str(self._path)

    @property
    def lost(self) -> int:
        """Bytes of output that are not in the file."""
        return self._reader.lost

    async def _open(self) -> None:
        self._file = await self._open_file()

    async def _open_file(self) -> AsyncFileIO:
        """A cancelled open waits for the thread that opens, to close what it has opened."""
        opening = asyncio.ensure_future(_opened(self._path, self._mode, self._thread))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            await asyncio.wait([opening])
            if not opening.cancelled() and opening.exception() is None:
                await opening.result().close()
            raise

    async def _run(self) -> AttachEnd:
        assert self._file is not None
        try:
            async for data in self._reader:
                view = memoryview(data)
                while view:
                    self._writing = True
                    view = view[await self._file.write(view) :]
                    self._writing = False
        except OSError as exc:
            self._writing = False
            raise HostError("write the console's output", exc.errno or 0, path=str(self._path)) from exc
        return AttachEnd.GUEST_ENDED

    def _finish(self) -> None:
        self._reader.close()

    def _progress(self) -> object:
        return self._reader.position

    async def _close(self) -> None:
        self._reader.close()
        if self._file is not None:
            file, self._file = self._file, None
            if not self._writing:  # else a thread is stuck in it yet, and the file closes when that lets go of it
                ofdlock.unlock(file.fileno())
                await file.close()
        self._thread.shutdown(wait=False)


async def _opened(path: Path, mode: str, executor: Hands) -> AsyncFileIO:
    import aiofiles  # for this back end only

    from aiovmm.runtime.output_file import open_output_file

    def opener(name: str, _flags: int) -> int:
        return open_output_file(name, "file", "open the console's file", append=mode == "ab")

    opening = aiofiles.open(path, mode, buffering=0, opener=opener, executor=executor)  # type: ignore[call-overload]
    return await opening  # type: ignore[no-any-return]
