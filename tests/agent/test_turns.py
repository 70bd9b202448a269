"""What the agent does while it cannot say what it has, or nobody wants to hear it: it comes when it can, and waits meanwhile."""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from aiovmm.agent import Agent
from aiovmm.agent.process import create
from aiovmm.agent.request import DEVNULL, PIPE, Request
from aiovmm.agent.wire import Frame, FrameBuffer, Kind, Stream, frame, greeting
from tests.agent.conftest import Guest
from tests.limits import HANGS

_PIECE = 65000  # bytes that fit one frame, of which five leave no room for a sixth


class Host:
    """As fast as can be: what it is sent never waits for it."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._frames = FrameBuffer()
        self.say(greeting())
        self.close = self._socket.close

    def say(self, *frames: bytes) -> None:
        self._socket.setblocking(True)
        self._socket.sendall(b"".join(frames))

    def start(self, number: int, script: str, *, pty: bool = False, credit: tuple[int, int] = (0, 100)) -> bytes:
        asked = Request(args=["sh", "-c", script], modes=(DEVNULL, PIPE, PIPE))
        payload = bytearray(replace(asked, pty=(80, 24) if pty else None).payload())
        struct.pack_into("<II", payload, 12, *credit)
        return frame(number, Kind.START, bytes(payload))

    def hear(self, until: Callable[[Frame], bool]) -> None:
        """Each frame, until that is so."""
        self._socket.setblocking(False)
        deadline = time.monotonic() + HANGS
        while True:
            try:
                size = self._socket.recv_into(self._frames.room())
            except BlockingIOError:
                assert time.monotonic() < deadline, "nothing comes any more"
                continue
            assert size, "the agent closed the connection"
            for one in self._frames.filled(size):
                if until(one):
                    return


def test_what_there_was_no_room_for_comes_when_there_is(guest: Guest) -> None:
    """All of them may speak at once, and then say nothing more: no event tells of those whose turn it was not."""
    script = f"head -c {_PIECE} /dev/zero; echo there >&2; exec sleep 1000"
    for _ in range(30):
        with closing(Host(guest.path)) as host:
            waiting = set(range(8))

            def is_there(said: Frame, waiting: set[int] = waiting) -> bool:
                waiting -= {said.channel} if said.kind == Kind.DATA else set()
                return not waiting

            host.say(*(host.start(number, script) for number in waiting))
            host.hear(is_there)
            left = 8 * _PIECE
            credit = struct.pack("<I", 1 << 20)

            def is_all(said: Frame) -> bool:
                nonlocal left
                left -= len(said.payload) if said.kind == Kind.DATA else 0
                return left == 0

            host.say(*(frame(number, Kind.CREDIT, credit, Stream.STDOUT) for number in range(8)))
            host.hear(is_all)


def test_a_terminal_whose_output_nobody_reads_costs_nothing(guest: Guest) -> None:
    with closing(Host(guest.path)) as host:
        host.say(host.start(0, "head -c 3000 /dev/zero | tr '\\0' x", pty=True, credit=(1000, 0)))
        host.hear(lambda said: said.kind == Kind.EXIT)
        deadline = time.monotonic() + HANGS
        while _state(guest) != "S":
            assert time.monotonic() < deadline, "it looks again and again"


def _state(guest: Guest) -> str:
    """Of proc(5): S sleeps, R does not."""
    return Path(f"/proc/{guest.process.pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Path]:
    """A directory that whoever enters it waits for, until it is taken away: nobody serves it."""
    libc = ctypes.CDLL(None, use_errno=True)
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0".encode()
    mounted = libc.mount(b"none", bytes(tmp_path), b"fuse", 0, options) == 0
    yield tmp_path
    os.close(fuse)
    libc.umount2(bytes(tmp_path), 2)  # MNT_DETACH
    assert mounted, os.strerror(ctypes.get_errno())


@pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse")
async def test_one_that_hangs_before_it_begins_has_nobody_elses_streams(
    agent: Agent, guest: Guest, hanging: Path
) -> None:
    """Who reads a pipe to its end waits for all who have its other end open."""
    reads = await create(agent, ["cat"], (PIPE, PIPE, DEVNULL))
    starting = asyncio.create_task(create(agent, ["true"], (DEVNULL, DEVNULL, DEVNULL), cwd=hanging))
    try:
        async with asyncio.timeout(HANGS):
            while len(guest.children) < 2:  # noqa: ASYNC110 - another process's doing
                await asyncio.sleep(0.01)
            assert reads.stdin is not None
            reads.stdin.write_eof()
            assert await reads.wait() == 0
    finally:
        starting.cancel()
        await asyncio.wait([starting])
