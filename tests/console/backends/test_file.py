from __future__ import annotations

import asyncio
import errno
import os
import pty
import socket
from pathlib import Path

import pytest

from aiovmm.console import AttachEnd, Console
from aiovmm.console.backends import FileBackend
from aiovmm.errors import ConfigError, HostError, StateError
from aiovmm.runtime.hands import Hands


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


async def test_a_terminal_is_shown_what_draws_alone() -> None:
    master, slave = pty.openpty()
    console = Console()
    console.feed(b"\x1b]52;c;eA==\x07history \x1b[")
    async with FileBackend(console, os.ttyname(slave)):
        console.feed(b"6n\x1b[31mred")
    assert os.read(master, 100) == b"history \x1b[31mred"
    os.close(master)
    os.close(slave)


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


async def test_a_host_without_a_thread_for_it_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    console, before = Console(), os.listdir("/proc/self/fd")
    backend = await FileBackend(console, tmp_path / "log").__aenter__()
    monkeypatch.setattr(Hands, "submit", none)
    console.feed(b"x")
    with pytest.raises(HostError, match="starting a thread"):
        await backend.wait()
    await backend.__aexit__(None, None, None)
    assert os.listdir("/proc/self/fd") == before


async def test_files_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "log"):
        with pytest.raises(HostError, match=str(path)):
            await FileBackend(Console(), path).__aenter__()


async def test_a_fifo_is_read_by_who_comes_and_comes_again(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    console = Console()
    async with FileBackend(console, tmp_path / "fifo"):
        for word in (b"one", b"two"):
            console.feed(word)
            assert await asyncio.to_thread(_first_of, tmp_path / "fifo", 3) == word


def _first_of(path: Path, size: int) -> bytes:
    with path.open("rb", buffering=0) as reader:
        return reader.read(size) or b""


async def test_a_fifo_that_nobody_reads_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    console = Console()
    async with asyncio.timeout(60), FileBackend(console, tmp_path / "fifo"):
        console.feed(bytes(300_000))


async def test_the_pipe_the_socket_and_the_terminal_behind_a_descriptor() -> None:
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    master, slave = os.openpty()
    for to, at in ((theirs.fileno(), ours.fileno()), (writing, reading), (slave, master)):
        console = Console()
        async with FileBackend(console, f"/dev/fd/{to}"):
            console.feed(b"seen")
        assert os.read(at, 100) == b"seen"
        assert os.get_blocking(to), "it is somebody else's as well"
    for fd in (reading, writing, master, slave):
        os.close(fd)
    ours.close()
    theirs.close()


async def test_a_reader_that_leaves_a_pipe_is_told_of() -> None:
    reading, writing = os.pipe()
    console = Console()
    async with FileBackend(console, f"/dev/fd/{writing}") as backend:
        os.close(reading)
        console.feed(b"x")
        with pytest.raises(HostError, match="Broken pipe"):
            await backend.wait()
    os.close(writing)


async def test_a_socket_with_a_name_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "sock"))
        with pytest.raises(ConfigError, match="is a socket"):
            await FileBackend(Console(), tmp_path / "sock").__aenter__()


async def test_entering_twice_is_refused(tmp_path: Path) -> None:
    async with FileBackend(Console(), tmp_path / "log") as backend:
        with pytest.raises(StateError):
            await backend.__aenter__()
