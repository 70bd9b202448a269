"""One connection to a back end: carries sequences out, one after the other, and notices when the peer goes."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from collections.abc import Callable
from typing import TypeVar

from aiovmm.errors import HostError, PeerError
from aiovmm.runtime.awake import awake_timeout
from aiovmm.runtime.stream_socket import connected_to
from aiovmm.vhost_user.channel import Channel, ChannelClosed, close_fds
from aiovmm.vhost_user.messages import Message, answer_layout
from aiovmm.vhost_user.payloads import Word
from aiovmm.vhost_user.protocol import BackendRequest, Flag, FrontendRequest, ProtocolFeature
from aiovmm.vhost_user.sequences import Offer, Sequence, negotiate

__all__ = ["Connection", "connect"]

T = TypeVar("T")
ANSWER_TIMEOUT = 30.0
"""Seconds for a whole sequence of requests, however many answers it has: a back end that is not done by then is taken for dead
(it may drain requests before it stops its rings)."""


class Connection:
    """Made by `open`. `on_lost(self, error)` is called once if the connection ends by itself, with ChannelClosed, or with the
    PeerError that made us end it; `on_config_change()` when the back end says so."""

    def __init__(
        self,
        channel: Channel,
        *,
        on_lost: Callable[[Connection, PeerError], None],
        on_config_change: Callable[[], None],
        timeout: float = ANSWER_TIMEOUT,
    ) -> None:
        self.offer = Offer(0, ProtocolFeature(0))
        self._channel = channel
        self._requests: Channel | None = None  # the back end's own
        self._on_lost: Callable[[Connection, PeerError], None] | None = on_lost
        self._on_config_change = on_config_change
        self._timeout = timeout
        self._turn = asyncio.Lock()
        self._error: PeerError | None = None  # what ended it
        self._asked: Message | None = None
        self._answer: asyncio.Future[Message] | None = None
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._listen(), name="vhost-user answers")]

    @classmethod
    async def open(
        cls,
        sock: socket.socket,
        wanted: ProtocolFeature,
        *,
        on_lost: Callable[[Connection, PeerError], None],
        on_config_change: Callable[[], None],
        timeout: float = ANSWER_TIMEOUT,
    ) -> Connection:
        """Negotiate on a connected socket, which becomes the connection's. Raises PeerError, HostError, leaving nothing."""
        connection = cls(
            Channel(sock, FrontendRequest), on_lost=on_lost, on_config_change=on_config_change, timeout=timeout
        )
        try:
            connection.offer = await connection.carry_out(negotiate(wanted))
            if connection.offer.protocol & ProtocolFeature.BACKEND_REQ:
                await connection._open_requests()
        except BaseException:
            connection._on_lost = None
            await connection.close()
            raise
        return connection

    def check(self) -> None:
        """Raises what has ended it, if anything has."""
        if self._error is not None:
            raise self._error

    async def carry_out(self, sequence: Sequence[T]) -> T:
        """Send its requests and hand it the answers, all within `timeout` from now, the wait for a sequence before it included.
        Raises what the sequence raises, PeerError, or ChannelClosed."""
        try:
            async with awake_timeout(self._timeout) as limit, self._turn:
                return await self._carry_out(sequence, limit)
        except TimeoutError:
            raise self._error or PeerError(f"the back end was not done within {self._timeout:g} s") from None

    async def _carry_out(self, sequence: Sequence[T], limit: asyncio.Timeout) -> T:
        try:
            request = next(sequence)
            while True:
                request = sequence.send(await self._ask(request, limit))
        except StopIteration as end:
            result: T = end.value
            return result

    async def close(self) -> None:
        """End it. Idempotent; whoever waits for an answer gets ChannelClosed."""
        self._on_lost = None
        self._end(ChannelClosed("the connection was closed"))
        me = asyncio.current_task()
        tasks = [t for t in self._tasks if t is not me]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._tasks.clear()  # how they ended knows us

    async def _ask(self, request: Message, limit: asyncio.Timeout) -> Message:
        expected = answer_layout(request.request) is not None
        # Requests that the protocol wants answered before REPLY_ACK is agreed on are those with an answer of their own.
        acked = not expected and bool(self.offer.protocol & ProtocolFeature.REPLY_ACK)
        if acked:
            request = Message(request.request, request.payload, request.fds, Flag.NEED_REPLY)
        self.check()
        answered = expected or acked
        self._asked = request if answered else None
        future = self._answer = asyncio.get_running_loop().create_future()
        try:
            await self._channel.send(request)
            answer = await asyncio.shield(future) if answered else Message(request.request)
        except asyncio.CancelledError:  # its answer would be taken for the next one's
            if limit.expired():
                self._lost(PeerError(f"the back end did not answer {request.request.name} within {self._timeout:g} s"))
            else:
                self._lost(ChannelClosed(f"{request.request.name} was abandoned"))
            _drop(future)
            raise
        except PeerError as exc:
            _drop(future)
            raise self._error or exc from None
        finally:
            self._asked = self._answer = None
        if acked and isinstance(answer.payload, Word) and answer.payload.value != 0:
            raise PeerError(f"the back end refuses {request.request.name} (it says {answer.payload.value})")
        return answer

    async def _listen(self) -> None:
        """Answers, and the end of the stream."""
        try:
            while True:
                message = await self._channel.receive()
                asked, answer = self._asked, self._answer
                if not message.is_reply or asked is None or answer is None or answer.done():
                    close_fds(message.fds)
                    raise PeerError(f"the back end sends {message.request.name} unasked")
                if message.request is not asked.request:
                    close_fds(message.fds)
                    raise PeerError(f"{asked.request.name} is answered by {message.request.name}")
                answer.set_result(message)
        except PeerError as exc:
            self._lost(exc)

    async def _open_requests(self) -> None:
        """The channel on which the back end asks us."""
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as exc:
            raise HostError("making a socket pair", exc.errno or errno.EMFILE) from exc
        self._requests = Channel(ours, BackendRequest)
        with theirs:
            await self.carry_out(_hand_over(theirs.fileno()))
        self._tasks.append(
            asyncio.get_running_loop().create_task(self._serve(self._requests), name="vhost-user requests")
        )

    async def _serve(self, channel: Channel) -> None:
        try:
            while True:
                message = await channel.receive()
                if message.is_reply:
                    close_fds(message.fds)
                    raise PeerError(f"the back end answers {message.request.name}, which it was not asked")
                if message.needs_reply:
                    await channel.send(Message(message.request, Word(0), flags=Flag.REPLY))
                self._on_config_change()
        except ChannelClosed:
            channel.close()  # it may close this one alone
        except PeerError as exc:
            self._lost(exc)

    def _lost(self, error: PeerError) -> None:
        told, self._on_lost = self._on_lost, None
        self._end(error)
        if told is not None:
            told(self, error)

    def _end(self, error: PeerError) -> None:
        self._error = self._error or error
        self._channel.close()
        if self._requests is not None:
            self._requests.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)


def _drop(answer: asyncio.Future[Message]) -> None:
    """Nobody will look at it: close what came with it."""
    if not answer.done():
        answer.cancel()
    elif not answer.cancelled() and answer.exception() is None:
        close_fds(answer.result().fds)


def _hand_over(fd: int) -> Sequence[None]:
    yield Message(FrontendRequest.SET_BACKEND_REQ_FD, fds=(fd,))


def connect(path: str | os.PathLike[str]) -> socket.socket:
    """A socket connected to `path`. Raises HostError."""
    try:
        return connected_to(path)
    except OSError as exc:
        number = errno.ENOTSOCK if exc.errno == errno.ECONNREFUSED and _is_no_socket(path) else exc.errno or 0
        hint = "is the back end running?" if number in (errno.ENOENT, errno.ECONNREFUSED) else ""
        raise HostError("connecting to the vhost-user back end", number, hint, os.fspath(path)) from exc


def _is_no_socket(path: str | os.PathLike[str]) -> bool:
    """Of a file or directory the kernel says, too, that nobody listens there (unix(7)); nobody ever will."""
    try:
        return not stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False
