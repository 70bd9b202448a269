from __future__ import annotations

import asyncio
import errno
import os
import socket
import tty

import pytest

from aiovmm.console.fds import OwnedFd
from aiovmm.runtime.nowait import read_now, write_now
from tests.limits import HANGS


async def test_bytes_go_through_a_full_pipe() -> None:
    read_fd, write_fd = os.pipe()
    source, sink = OwnedFd(read_fd), OwnedFd(write_fd)
    data = os.urandom(1 << 20)
    writing = asyncio.create_task(sink.write(data))
    received = b""
    while len(received) < len(data):
        received += await source.read()
    await writing
    assert received == data
    sink.close()
    assert await source.read() == b""
    source.close()


async def test_a_number_that_is_used_again_is_watched_afresh() -> None:
    """Cancelled while it waits, closed, and its number given to another: the loop must have forgotten the first."""
    for _ in range(50):
        read_fd, write_fd = os.pipe()
        source = OwnedFd(read_fd)
        waiting = asyncio.create_task(source.read())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        source.close()
        os.close(write_fd)
        again_read, again_write = os.pipe()
        assert again_read == read_fd
        again = OwnedFd(again_read)
        reading = asyncio.create_task(again.read())
        os.write(again_write, b"x")
        assert await asyncio.wait_for(reading, HANGS) == b"x"
        again.close()
        os.close(again_write)


async def test_closing_puts_the_flags_of_a_shared_file_back() -> None:
    read_fd, write_fd = os.pipe()
    owned = OwnedFd(os.dup(read_fd))
    assert not os.get_blocking(read_fd)
    owned.close()
    owned.close()
    assert os.get_blocking(read_fd)
    os.set_blocking(read_fd, False)
    OwnedFd(os.dup(read_fd)).close()
    assert not os.get_blocking(read_fd)
    os.close(read_fd)
    os.close(write_fd)


async def test_a_file_opened_again_leaves_the_flags_of_the_first_alone() -> None:
    read_fd, write_fd = os.pipe()
    owned = OwnedFd.reopen(read_fd, os.O_RDONLY)
    assert os.get_blocking(read_fd)
    os.write(write_fd, b"x")
    assert await owned.read() == b"x"
    owned.close()
    os.close(read_fd)
    os.close(write_fd)


async def test_a_reader_that_is_gone_is_an_error_to_the_writer() -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    sink = OwnedFd(write_fd)
    with pytest.raises(BrokenPipeError) as caught:
        await sink.write(b"x")
    assert caught.value.errno == errno.EPIPE
    sink.close()


def _pair(kind: str) -> tuple[int, int]:
    """One to read and one to write, both blocking."""
    if kind == "pipe":
        return os.pipe()
    if kind == "socket":
        ours, theirs = socket.socketpair()
        return ours.detach(), theirs.detach()
    master, slave = os.openpty()
    tty.setraw(slave)
    return slave, master


def _fill(fd: int, size: int = 100_000) -> None:
    """With writes of `size` bytes; none has to take all of them."""
    for _ in range(100_000):
        assert 0 < write_now(fd, bytes(size)) <= size


@pytest.mark.parametrize("side", [0, 1], ids=["slave", "master"])
@pytest.mark.parametrize("size", [1, 777, 1000, 4096, 100_000])
def test_a_terminal_whose_room_is_no_multiple_of_a_write_is_not_waited_for(size: int, side: int) -> None:
    ends = _pair("terminal")
    try:
        with pytest.raises(BlockingIOError):
            _fill(ends[side], size)
        assert os.get_blocking(ends[side]), "as whoever shares it has left it"
    finally:
        for fd in ends:
            os.close(fd)


@pytest.mark.parametrize("kind", ["pipe", "socket", "terminal"])
def test_what_is_shared_is_never_waited_for(kind: str) -> None:
    """Whoever shares the open file has made it blocking again since we looked."""
    reader, writer = _pair(kind)
    try:
        with pytest.raises(BlockingIOError):
            read_now(reader, 100)
        assert write_now(writer, b"abc") == 3
        assert read_now(reader, 2) == b"ab"
        assert read_now(reader, 100) == b"c"
        with pytest.raises(BlockingIOError):
            _fill(writer)
    finally:
        os.close(reader)
        os.close(writer)
    with pytest.raises(OSError, match="Bad file descriptor"):
        read_now(reader, 1)
