"""Between a network card and passt: frames of two streams, each from one to the other if the firewall lets it pass.

A frame is its length in 4 bytes, big-endian, and so many bytes, as passt and QEMU have it. Whatever goes wrong ends both
streams: then the guest has no network, and not one without a filter.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from aiovmm.runtime.fair import Account
from aiovmm.runtime.turns import ACCOUNT, next_turn
from aiovmm.sandboxes.firewall.answers import Answers
from aiovmm.sandboxes.firewall.firewall import Firewall, Verdict

__all__ = ["relay"]

_PART = 64 << 10  # bytes that are taken at once
_TURN = 0.0003  # seconds, and the frame that is being judged
_LARGEST = 65550
_LENGTH = 4


async def relay(firewall: Firewall, guest: socket.socket, passt: socket.socket) -> None:
    """Until either ends. Both sockets are its own, and are closed then. It has turns of the event loop as a guest has."""
    ACCOUNT.set(Account())
    to_guest, to_passt = _Writer(guest), _Writer(passt)
    with guest, passt:
        async with Answers(firewall, to_guest.write_frames) as answers:
            await _first_of(
                _carry(guest, to_passt, firewall.from_guest, to_guest, answers.look),
                _carry(passt, to_guest, firewall.to_guest, to_passt),
                answers.keep(),
            )


async def _first_of(*ways: Coroutine[Any, Any, None]) -> None:
    """Until one of them ends: then all do. Raises what it raised."""
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in done:
        error = task.exception()
        if error is not None and not isinstance(error, OSError):  # of the sockets: the other side is gone
            raise error


class _Writer:
    """Whole frames, of two who have some."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._turn = asyncio.Lock()

    async def write(self, data: bytes) -> None:
        async with self._turn:
            await asyncio.get_running_loop().sock_sendall(self._sock, data)

    async def write_frames(self, frames: Sequence[bytes]) -> None:
        """Each after its length."""
        if frames:
            await self.write(b"".join(map(_framed, frames)))

    async def offer(self, data: bytes) -> None:
        """If nobody waits: who does not read what he is sent is told nothing."""
        if not self._turn.locked():
            await self.write(data)


async def _carry(
    source: socket.socket,
    target: _Writer,
    judge: Callable[[bytes, float], Verdict],
    back: _Writer,
    look: Callable[[], None] = lambda: None,
) -> None:
    loop, waiting = asyncio.get_running_loop(), bytearray()
    while data := await loop.sock_recv(source, _PART):
        waiting += data
        more = True
        while more:
            await next_turn()
            passed, replies, answers = _judged(waiting, judge)
            if replies:
                await back.offer(replies)
            if answers:
                await back.write(answers)
            look()
            if passed:
                await target.write(passed)
            more = _size(waiting, 0) >= 0


def _judged(waiting: bytearray, judge: Callable[[bytes, float], Verdict]) -> tuple[bytes, bytes, bytes]:
    """Takes whole frames out of `waiting`, as many as one turn has time for: those that pass, what is told where that is easy,
    and in any case; each after its length. Raises ValueError."""
    passed: list[bytes] = []
    replies: list[bytes] = []
    answers: list[bytes] = []
    at, now = 0, time.monotonic()
    end = now + _TURN
    while now < end and (size := _size(waiting, at)) >= 0:
        frame = bytes(waiting[at + _LENGTH : at + _LENGTH + size])
        at += _LENGTH + size
        verdict = judge(frame, now)
        if verdict.passes:
            passed.append(_framed(frame))
        if verdict.reply is not None:
            replies.append(_framed(verdict.reply))
        answers += map(_framed, verdict.frames)
        now = time.monotonic()
    del waiting[:at]
    return b"".join(passed), b"".join(replies), b"".join(answers)


def _framed(frame: bytes) -> bytes:
    return len(frame).to_bytes(_LENGTH, "big") + frame


def _size(waiting: bytearray, at: int) -> int:
    """Of the frame there; -1 if it has not come as a whole. Raises ValueError."""
    size = int.from_bytes(waiting[at : at + _LENGTH], "big")
    if size > _LARGEST:
        raise ValueError(f"a frame of {size} bytes")
    return size if len(waiting) - at >= _LENGTH + size else -1
