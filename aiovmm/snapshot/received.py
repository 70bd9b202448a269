"""A snapshot's memory from somewhere else than its directory: object storage, another host."""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterable
from pathlib import Path
from typing import Any

from aiovmm.errors import HostError, SnapshotError, UsageError
from aiovmm.memory import GuestMemory
from aiovmm.runtime.tasks import in_thread
from aiovmm.snapshot.base import FIXED, Base
from aiovmm.snapshot.directory import Opened, open_snapshot
from aiovmm.snapshot.pages import PAGE, Kept, sum_up

__all__ = ["Pages", "received"]

Pages = AsyncIterable[tuple[int, bytes]]
"""(offset, data) of whole pages of the memory's file, in any order; what is not given is zeros."""

_BATCH = 8 << 20  # bytes that are written by one call of a thread


async def received(name: str, path: Path, pages: Pages) -> tuple[Opened, Base]:
    """The snapshot at `path`, whose memory comes from `pages`. `name` is for threads. Raises SnapshotError, also if the memory is
    not what was saved, HostError, and whatever `pages` raises."""
    if not hasattr(pages, "__aiter__"):
        raise UsageError(f"pages is {type(pages).__name__}: it is an async iterator of (offset, bytes)")
    opened = await in_thread(f"{name}: open snapshot", open_snapshot, path, memory=False)
    if opened.base is not None:
        raise SnapshotError(f"{path}: it is an increment: give the pages of a whole snapshot, and that one's state")
    fd = _new_file(opened.size)
    try:
        await _fill(name, fd, opened.size, pages)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, FIXED)
        if await in_thread(f"{name}: verify memory", _sum, fd, opened.size) != Kept(opened.pages, opened.sum):
            raise SnapshotError(f"{path}: the pages that were given are not what was saved")
    except BaseException:
        await in_thread(f"{name}: drop memory", os.close, fd)
        raise
    return opened, Base(fd, (), opened.identity)


def _new_file(size: int) -> int:
    fd = -1
    try:
        fd = os.memfd_create("aiovmm-base", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size)
    except OSError as exc:
        if fd >= 0:
            os.close(fd)
        raise HostError("making room for guest memory", exc.errno or 0) from exc
    return fd


async def _fill(name: str, fd: int, size: int, pages: Pages) -> None:
    """All of them, off the loop, and the next of them meanwhile."""
    batch: list[tuple[int, memoryview]] = []
    waiting = 0
    iterator = pages.__aiter__()
    try:
        async for chunk in iterator:
            offset, data = _checked(chunk, size)
            batch.append((offset, data))
            waiting += len(data)
            if waiting >= _BATCH:
                await in_thread(f"{name}: receive memory", _write, fd, batch)
                batch, waiting = [], 0
        await in_thread(f"{name}: receive memory", _write, fd, batch)
    finally:
        if (close := getattr(iterator, "aclose", None)) is not None:
            await close()


def _checked(chunk: Any, size: int) -> tuple[int, memoryview]:
    try:
        offset, data = chunk
        view = memoryview(data).cast("B")
    except (TypeError, ValueError) as exc:
        raise SnapshotError(f"pages gave {type(chunk).__name__}, not (offset, bytes)") from exc
    if type(offset) is not int or offset < 0 or offset % PAGE or len(view) % PAGE or offset + len(view) > size:
        raise SnapshotError(
            f"pages gave {len(view)} bytes at {offset!r}: whole pages of {PAGE} are wanted, in {size} bytes of memory"
        )
    return offset, view


def _write(fd: int, batch: list[tuple[int, memoryview]]) -> None:
    for offset, view in batch:
        while view:
            try:
                done = os.pwrite(fd, view, offset)
            except OSError as exc:
                raise HostError("receiving guest memory", exc.errno or 0) from exc
            view, offset = view[done:], offset + done


def _sum(fd: int, size: int) -> Kept:
    memory = GuestMemory.copy_on_write([(0, size)], fd)
    try:
        return sum_up(memory)
    finally:
        memory.close()
