from __future__ import annotations

import asyncio
import errno
import os

import pytest

from aiovmm.console.fds import OwnedFd


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
        assert await asyncio.wait_for(reading, 5) == b"x"
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
