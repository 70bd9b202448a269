"""The pump: one connection to an agent, its frames to their channels and back. It decides nothing."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Coroutine
from typing import Any, cast

from aiovmm.agent.channel import Channel
from aiovmm.agent.wire import Frame, FrameBuffer, Greeting, Kind, errno_of, frame, greeting, number_of, read_greeting
from aiovmm.errors import PeerError
from aiovmm.runtime.fair import Account
from aiovmm.runtime.turns import Job

__all__ = ["Link"]

_UNREAD = (
    4 << 20
)  # bytes for an agent that does not read: after them it is not read either, so that it asks for no more
_FRAMES = 32  # that are served in one turn of the loop: the guest may say as many as it likes
_FIRST_ACCEPTED = 1 << 31  # channels from here on are the agent's to begin


class Link(asyncio.BufferedProtocol):
    """`greeted` is done when the agent has said who it is. `lost` is set when nothing can be asked of it any more; then all
    channels are over.

    It refers to nobody but its channels: the event loop has it, and must not keep a VM that its program has forgotten."""

    def __init__(self) -> None:
        self.greeted: asyncio.Future[Greeting] = asyncio.get_running_loop().create_future()
        self.lost = False
        self.error: BaseException | None = None
        self.channels: dict[int, Channel] = {}
        self._watching: asyncio.Task[None] | None = None
        self._frames = FrameBuffer()
        self._turns = Job(self._serve, Account())
        self._behind = False  # frames wait for their turn, and no more are read meanwhile
        self._unread = False  # the agent does not read, and is not read either
        self._is_reading = True
        self._end: BaseException | None = None  # why no more comes behind those
        self._transport: asyncio.Transport | None = None
        self._answers: deque[asyncio.Future[int]] = deque()
        self._next = 0

    # -- asking --------------------------------------------------------------------------------------------------------

    def begin(self, kind: Kind, payload: bytes, *, window: int, number: int | None = None) -> Channel:
        """A new channel, asked for by a frame of this kind; or the agent's own, with its `number`."""
        window_in = self.greeted.result().window
        if number is None:
            number = self._next
            self._next = (self._next + 1) % _FIRST_ACCEPTED
        channel = Channel(number, self.send, input_window=window_in, window=window, forget=self._forget)
        self.channels[number] = channel
        if number < _FIRST_ACCEPTED:
            self.send(frame(number, kind, payload))
        return channel

    def require(self) -> None:
        """Raises what it was lost by, if it was: nobody would end a channel that is begun then."""
        if self.lost:
            raise self.error or ConnectionResetError("the agent is gone")

    async def ask(self, kind: Kind, payload: bytes = b"") -> int:
        """An errno, or 0. Answers come in the order of questions."""
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        question = frame(0, kind, payload)  # one that cannot be put has no answer: the next would be taken for it
        if self.lost:
            raise ConnectionResetError("the agent is gone")
        self._answers.append(answer)
        self.send(question)
        return await answer

    def send(self, data: bytes) -> None:
        """A frame, which nobody has once the connection is closed: that is told soon."""
        if self._transport is not None and not self.lost and not self._transport.is_closing():
            self._transport.write(data)

    def close_after(self, event: Coroutine[Any, Any, object]) -> None:
        """Close it when this is over: the guest's end, after which its connections stay, and say nothing."""
        self._watching = asyncio.get_running_loop().create_task(
            _close_after(event, weakref.ref(self)), name="agent: end"
        )

    @property
    def socket(self) -> object:
        """What its transport says that it is on."""
        return self._transport and self._transport.get_extra_info("socket")

    def close(self) -> None:
        """Idempotent."""
        if self._transport is not None:
            self._transport.abort()
        self._lose(None)

    # -- what the transport says ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is joined to the agent's socket."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by name
        self._transport.set_write_buffer_limits(_UNREAD)
        self._transport.write(greeting())

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where bytes go."""
        return self._frames.room()

    def buffer_updated(self, nbytes: int) -> None:
        """Some have come."""
        self._frames.add(nbytes)
        self._behind = True
        self._turns.ready()
        self._read_or_not()

    def pause_writing(self) -> None:
        """See _UNREAD. An agent reads whatever it has to say, so that this is no deadlock but with one that is none."""
        self._unread = True
        self._read_or_not()

    def resume_writing(self) -> None:
        """It reads again."""
        self._unread = False
        self._read_or_not()

    def eof_received(self) -> None:
        """The agent has gone; the transport closes itself."""

    def connection_lost(self, exc: BaseException | None) -> None:
        """Both ways. What came before is heard."""
        self._transport = None
        if self._behind:
            self._end = exc or ConnectionResetError("the agent closed the connection")
        else:
            self._lose(exc)

    def _read_or_not(self) -> None:
        reads = not self._behind and not self._unread
        if self._transport is None or self._transport.is_closing() or reads is self._is_reading:
            return
        self._is_reading = reads
        if reads:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _serve(self) -> None:
        """Some of the frames that have come: one turn."""
        try:
            frames = self._frames.take(_FRAMES)
            for received in frames:
                self._received(received)
        except PeerError as exc:
            self._lose(exc)
            if self._transport is not None:
                self._transport.abort()
            return
        if len(frames) == _FRAMES:
            self._turns.again()
            return
        self._behind = False
        self._read_or_not()
        if self._end is not None:
            self._lose(self._end)

    # -- what the agent says -------------------------------------------------------------------------------------------

    def _received(self, frame: Frame) -> None:
        channel = self.channels.get(frame.channel)
        if not self.greeted.done():
            self.greeted.set_result(read_greeting(frame))
        elif frame.kind == Kind.DONE:
            number = errno_of(number_of(frame))  # first: whoever asked is still to be told if that is none
            answer = self._answers.popleft() if self._answers else None
            if answer is not None and not answer.done():
                answer.set_result(number)
        elif channel is not None:
            channel.received(frame)
            if channel.over:
                self.channels.pop(frame.channel, None)
        elif frame.kind == Kind.ACCEPTED:
            self._turn_away(number_of(frame))
        # all else has crossed our CLOSE

    def _turn_away(self, number: int) -> None:
        """A connection of a listener that we have closed meanwhile: its program would wait for good, and the agent keep it."""
        if number not in self.channels:
            self.send(frame(number, Kind.CLOSE, bytes(4)))

    def _forget(self, number: int) -> None:
        self.channels.pop(number, None)

    def _lose(self, exc: BaseException | None) -> None:
        if self.lost:
            return
        self.lost = True
        self.error = exc
        self._turns.close()
        if not self.greeted.done():
            self.greeted.set_exception(exc or ConnectionResetError("the agent closed the connection"))
            self.greeted.exception()  # seen, whether or not somebody waits
        for answer in self._answers:
            if not answer.done():
                answer.set_exception(ConnectionResetError("the agent is gone"))
                answer.exception()
        if self._watching is not None:
            self._watching.cancel()
        channels = list(self.channels.values())
        self.channels.clear()
        for channel in channels:
            channel.end()


async def _close_after(event: Coroutine[Any, Any, object], link: weakref.ref[Link]) -> None:
    await event
    if (still := link()) is not None:
        still.close()
