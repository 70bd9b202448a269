from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from aiovmm.console import AttachEnd, Console
from aiovmm.console.backends import FileBackend
from aiovmm.errors import ConfigError, HostError, StateError


async def test_all_output_is_in_the_file(tmp_path: Path) -> None:
    path, console = tmp_path / "log", Console()
    path.write_bytes(b"older than this run")
    console.feed(b"boot ")
    async with FileBackend(console, path) as backend:
        assert backend.place == str(path)
        console.feed(b"x" * 300_000)
        console.feed(b" end")
    assert path.read_bytes() == b"boot " + b"x" * 300_000 + b" end"
    assert backend.lost == 0
    await backend.aclose()


async def test_appending(tmp_path: Path) -> None:
    path, console = tmp_path / "log", Console()
    path.write_bytes(b"one ")
    console.feed(b"two")
    async with FileBackend(console, path, append=True):
        pass
    assert path.read_bytes() == b"one two"


async def test_the_guests_end_ends_it(tmp_path: Path) -> None:
    console = Console()
    async with FileBackend(console, tmp_path / "log") as backend:
        console.feed(b"Power down")
        console.close()
        assert await backend.wait() is AttachEnd.GUEST_ENDED
        assert (tmp_path / "log").read_bytes() == b"Power down"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
async def test_a_full_disk_is_reported_and_holds_nobody_up() -> None:
    console = Console()
    with pytest.raises(HostError) as caught:
        async with FileBackend(console, "/dev/full"):
            console.feed(b"x")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "/dev/full")
    async with FileBackend(console, "/dev/full") as backend:
        with pytest.raises(HostError):
            await backend.wait()
        console.feed(b"the guest goes on")
    assert console.history == b"xthe guest goes on"


async def test_files_that_cannot_be_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="FIFO"):
        await FileBackend(Console(), tmp_path / "fifo").__aenter__()
    for path in (tmp_path, tmp_path / "none" / "log"):
        with pytest.raises(HostError, match=str(path)):
            await FileBackend(Console(), path).__aenter__()


async def test_entering_twice_is_refused(tmp_path: Path) -> None:
    async with FileBackend(Console(), tmp_path / "log") as backend:
        with pytest.raises(StateError):
            await backend.__aenter__()
