from __future__ import annotations

import asyncio
import errno
import os
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aiovmm.console import AttachEnd, Console
from aiovmm.console.backends import PtyBackend, base
from aiovmm.console.fds import OwnedFd
from aiovmm.errors import ConfigError
from tests.console.device import StubDevice
from tests.console.screen import DEADLINE, eventually


class Client:
    """A program that has opened the pseudo-terminal."""

    def __init__(self, name: str) -> None:
        self.fd = OwnedFd(os.open(name, os.O_RDWR | os.O_NOCTTY))
        self._seen = b""

    async def until(self, text: bytes) -> bytes:
        async with asyncio.timeout(DEADLINE):
            while text not in self._seen:
                data = await self.fd.read()
                assert data, self._seen
                self._seen += data
        end = self._seen.index(text) + len(text)
        shown, self._seen = self._seen[:end], self._seen[end:]
        return shown


@contextmanager
def client_of(name: str) -> Iterator[Client]:
    client = Client(name)
    try:
        yield client
    finally:
        client.fd.close()


async def test_a_client_sees_the_history_and_types() -> None:
    device = StubDevice()
    console = Console(device)
    async with PtyBackend(console) as pty:
        assert pty.name.startswith("/dev/pts/")
        console.feed(b"x" * 100_000 + b"boot\n")
        with client_of(pty.name) as client:
            assert len(await client.until(b"boot\n")) == 100_005
            console.feed(b"login: ")
            assert await client.until(b": ") == b"login: "
            await client.fd.write(b"root\r\x03")
            await eventually(lambda: device.received == b"root\r\x03")


async def test_it_may_be_closed_and_opened_again() -> None:
    device = StubDevice()
    console = Console(device)
    async with PtyBackend(console) as pty:
        for round_ in range(3):
            with client_of(pty.name) as client:
                console.feed(b"<%d>" % round_)
                assert await client.until(b"<%d>" % round_) == b"".join(b"<%d>" % n for n in range(round_ + 1))
                await client.fd.write(b"k")
                await eventually(lambda want=round_ + 1: device.received == b"k" * want)  # type: ignore[misc]
                attributes = termios.tcgetattr(client.fd.fileno())
                attributes[3] |= termios.ECHO | termios.ICANON
                termios.tcsetattr(client.fd.fileno(), termios.TCSANOW, attributes)
            await eventually(lambda: pty._view is None)
    assert device.received == b"kkk"


async def test_output_is_never_echoed_back_as_input() -> None:
    device = StubDevice()
    console = Console(device)
    async with PtyBackend(console) as pty:
        with client_of(pty.name) as client:
            console.feed(b"output\n")
            await client.until(b"output\n")
            await client.fd.write(b"!")
            await eventually(lambda: device.received)
        assert device.received == b"!"


async def test_one_who_writes_and_closes_at_once_is_heard() -> None:
    device = StubDevice()
    async with PtyBackend(Console(device)) as pty:
        with client_of(pty.name) as client:
            await client.fd.write(b"echo hello\r")
        await eventually(lambda: device.received == b"echo hello\r")


async def test_who_opens_it_while_the_guest_takes_no_input_is_shown_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who typed to it before is not waited for."""
    monkeypatch.setattr(base, "LINGER", 0.01)
    console = Console(StubDevice(room=0))
    console.feed(b"login: ")
    console.write(bytes(64 << 10))
    async with PtyBackend(console) as pty:
        for _ in range(2):
            with client_of(pty.name) as client:
                await client.until(b"login: ")
                await client.fd.write(b"root\r")
            await eventually(lambda: pty._view is None)


async def test_while_nobody_has_it_open_the_loop_is_idle() -> None:
    console = Console(StubDevice())
    async with PtyBackend(console) as pty:
        with client_of(pty.name):
            await eventually(lambda: pty._view is not None)
        await eventually(lambda: pty._view is None)
        began = time.process_time()
        await asyncio.sleep(0.5)
        assert time.process_time() - began < 0.25


async def test_a_client_that_does_not_read_stalls_nobody() -> None:
    console = Console(StubDevice(), history=1 << 16)
    async with PtyBackend(console) as pty:
        with client_of(pty.name) as client:
            await eventually(lambda: pty._view is not None)
            for _ in range(200):
                console.feed(b"." * 4096)
                await asyncio.sleep(0)
            console.feed(b"latest")
            assert b"bytes of earlier output are not shown" in await client.until(b"latest")


async def test_the_last_words_can_be_read() -> None:
    console = Console(StubDevice())
    async with PtyBackend(console) as pty:
        with client_of(pty.name) as client:
            await eventually(lambda: pty._view is not None)
            console.feed(b"Power down\n")
            console.close()
            ended = asyncio.create_task(pty.wait())
            assert await client.until(b"down\n") == b"Power down\n"
            assert await asyncio.wait_for(ended, DEADLINE) is AttachEnd.GUEST_ENDED
            with pytest.raises(BlockingIOError):
                os.read(client.fd.fileno(), 1)


async def test_the_guests_end_ends_it_when_nobody_looks() -> None:
    console = Console(StubDevice())
    async with PtyBackend(console) as pty:
        console.close()
        assert await asyncio.wait_for(pty.wait(), DEADLINE) is AttachEnd.GUEST_ENDED


async def test_a_link_leads_to_it_while_it_is_there(tmp_path: Path) -> None:
    link = tmp_path / "console"
    link.symlink_to("/dev/pts/of-an-earlier-run")
    console = Console(StubDevice())
    console.feed(b"hello")
    async with PtyBackend(console, symlink=link) as pty:
        assert os.readlink(link) == pty.name
        with client_of(str(link)) as client:
            await client.until(b"hello")
    assert os.listdir(tmp_path) == []


async def test_a_link_that_cannot_be_removed_any_more_keeps_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system that was mounted anew, to be read alone."""
    console, before = Console(StubDevice()), len(os.listdir("/proc/self/fd"))
    pty = PtyBackend(console, symlink=tmp_path / "console")
    await pty.open()

    def read_only(self: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "unlink", read_only)
    await pty.aclose()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_file_in_the_place_of_the_link_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="not a symbolic link"):
        await PtyBackend(Console(), symlink=path).__aenter__()
    assert path.read_text() == "precious"


@pytest.mark.parametrize("size", [1, 5000, 100_000])
async def test_a_slow_reader_gets_all_of_the_end(size: int) -> None:
    """He begins to read when the guest is gone and the back end is being left: nothing of it is flushed away."""
    console = Console(StubDevice())
    text = bytes(i % 251 for i in range(size))
    for _ in range(20 if size < 100_000 else 3):
        pty = PtyBackend(console := Console(StubDevice()))
        await pty.__aenter__()
        with client_of(pty.name) as client:
            await eventually(lambda pty=pty: pty._view is not None)  # type: ignore[misc]
            console.feed(text + b"<the end>")
            console.close()
            closing = asyncio.create_task(pty.aclose())
            await asyncio.sleep(0)
            shown = b""
            while not shown.endswith(b"<the end>"):
                shown += await client.fd.read(4096)
                await asyncio.sleep(0.01)
            assert shown == text + b"<the end>"
            await closing


@pytest.mark.parametrize("size", [10, 300_000], ids=["in the terminal", "more than it holds"])
async def test_a_reader_that_reads_no_more_does_not_hold_up_the_end(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiovmm.console.backends.base.LINGER", 0.05)
    console = Console(StubDevice())
    async with PtyBackend(console) as pty:
        with client_of(pty.name):
            await eventually(lambda: pty._view is not None)
            console.feed(b"x" * size)
            console.close()
            await asyncio.wait_for(pty.aclose(), DEADLINE)


@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "stays"])
async def test_a_program_that_has_it_alone_is_no_error_at_the_end(
    leaves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TIOCEXCL, as picocom(1) sets it: nobody else can open it then, but for root."""
    opened = os.open

    def alone(path: str, *args: int, **kwargs: int) -> int:
        if path == pty.name:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
        return opened(path, *args, **kwargs)

    console = Console(StubDevice())
    async with PtyBackend(console) as pty:
        with client_of(pty.name) as client:
            console.feed(b"up\n")
            await client.until(b"up\n")
            monkeypatch.setattr(os, "open", alone)
            console.feed(b"bye\n")
            console.close()
            await client.until(b"bye\n")
            if not leaves:
                assert await pty.wait() is AttachEnd.GUEST_ENDED
        assert await pty.wait() in (AttachEnd.GUEST_ENDED, AttachEnd.TERMINAL_CLOSED)
