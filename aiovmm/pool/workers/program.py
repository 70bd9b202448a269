"""A worker: `main`, and what it is asked. It ends when its socket does, or the process that started it.

The first that it hears is what rights it is to give up. It does so before it has threads, an event loop or a guest.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import time
from collections.abc import Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

from aiovmm.errors import AiovmmError, HostError, StateError
from aiovmm.pool.workers.confined import Confined
from aiovmm.pool.workers.connection import Connection, connect
from aiovmm.pool.workers.frames import FROM_POOL, FROM_WORKER, Decoder
from aiovmm.pool.workers.guest import Guest
from aiovmm.pool.workers.passing import accept
from aiovmm.pool.workers.plain import error_to_state
from aiovmm.runtime.plain import Fields, Plain, State
from aiovmm.runtime.threads import Thread
from aiovmm.snapshot.configuration import from_state

__all__ = ["main"]

_END = 10.0  # seconds for its guests' ends, and for whatever hinders them


def main(fd: int, passing_fd: int, parent: int) -> None:
    """Serve the socket `fd`, with what comes at `passing_fd`, for the process `parent`."""
    import uvloop

    sock, over = socket.socket(fileno=fd), socket.socket(fileno=passing_fd)
    confined: Confined | None = None
    error: AiovmmError | None = None
    try:
        if (confined := _told(sock)) is None:
            return
        confined.enter()
    except AiovmmError as exc:
        error = exc
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(sock, Server(over, confined), parent, error))
        _leave_in(_END)  # the loop's own end is among what may hinder


def _told(sock: socket.socket) -> Confined | None:
    """What comes first; None if nobody says anything any more."""
    decoder = Decoder()
    while data := sock.recv(1 << 16):
        for message, _ in decoder.feed(data):
            return Confined(Fields(message, "frame"))
    return None


def _leave_in(seconds: float) -> None:
    """The kernel takes apart what is left then."""
    try:
        Thread(partial(_leave, seconds), name="leave").start()
    except RuntimeError:  # no thread that would see to it
        os._exit(1)


def _leave(seconds: float) -> None:
    time.sleep(seconds)
    os._exit(1)


async def _serve(sock: socket.socket, server: Server, parent: int, error: AiovmmError | None) -> None:
    server.connection = connection = await connect(sock, server.heard, hears=FROM_POOL, said=FROM_WORKER)
    _watch(parent, connection)
    connection.send({"op": "hello", "error": None if error is None else error_to_state(error)})
    if error is not None:
        connection.close()
    await connection.over.wait()
    _leave_in(_END)
    await server.aclose()


def _watch(parent: int, connection: Connection) -> None:
    """The socket ends with its last holder, which may be a child of the parent's: so the parent itself is watched as well, and by
    a thread, for a loop that hangs would not hear of it."""
    watch = os.pidfd_open(parent) if os.getppid() == parent else None
    if watch is None:
        connection.abort()
        return
    loop = asyncio.get_running_loop()

    def wait() -> None:
        select.select([watch], [], [])
        with suppress(RuntimeError):  # the loop is closed: all is well
            loop.call_soon_threadsafe(connection.abort)
        _leave_in(_END)

    Thread(wait, name="parent").start()


class Server:
    """The guests of a worker, and the requests that are under way. `over` brings sockets that belong to some."""

    def __init__(self, over: socket.socket, confined: Confined | None) -> None:
        self.connection: Connection | None = None
        self._over = over
        self._confined = confined
        self._guests: dict[int, Guest] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def heard(self, message: State, data: bytes) -> None:
        """A frame. Raises SnapshotError, PeerError for what is none of the pool's."""
        fields = Fields(message, "frame")
        op, number = fields.text("op"), fields.number("vm")
        guest = self._guests.get(number)
        if op == "cancel":
            if (task := self._tasks.get(fields.number("id"))) is not None:
                task.cancel()
        elif op in ("input", "size"):
            if guest is not None:  # else it has gone
                guest.heard(op, fields, data)
        elif op == "dial":
            self._dial(fields.number("id"), guest, fields.number("port"))
        else:
            self._begin(fields.number("id"), self._answer_of(op, number, guest, fields))

    def _dial(self, id_: int, guest: Guest | None, port: int) -> None:
        try:
            sock = accept(self._over, id_)
        except HostError as exc:  # of this request alone: other guests go on
            self._failed(id_, exc)
        else:
            self._begin(id_, _refused() if guest is None else guest.dial(port, sock), sock)

    def _answer_of(self, op: str, number: int, guest: Guest | None, fields: Fields) -> Coroutine[Any, Any, Plain]:
        if op == "make":
            assert self.connection is not None, "it is heard by it"
            config = from_state(fields.state("config"))
            made = self._guests[number] = Guest(number, config, self.connection, self._confined)
            return made.make()
        if op == "leave":
            return self._leave(number)
        if op == "alive":
            return _alive()
        return _refused() if guest is None else guest.answer(fields)

    def _begin(self, id_: int, work: Coroutine[Any, Any, Plain], sock: socket.socket | None = None) -> None:
        task = self._tasks[id_] = asyncio.get_running_loop().create_task(self._answer(id_, work), name=f"request {id_}")
        task.add_done_callback(lambda task: self._answered(id_, work, task, sock))

    def _answered(
        self, id_: int, work: Coroutine[Any, Any, Plain], task: asyncio.Task[None], sock: socket.socket | None
    ) -> None:
        del self._tasks[id_]
        work.close()  # if it was cancelled before it began
        if sock is not None:
            sock.close()  # unless somebody has it by then
        if task.cancelled():
            self._failed(id_, StateError("it was cancelled"))

    async def _answer(self, id_: int, work: Coroutine[Any, Any, Plain]) -> None:
        assert self.connection is not None, "it was asked"
        try:
            self.connection.send({"op": "done", "id": id_, "value": await work})
        except Exception as exc:
            self._failed(id_, exc)

    def _failed(self, id_: int, error: BaseException) -> None:
        assert self.connection is not None, "it was asked"
        if not isinstance(error, AiovmmError | OSError | KeyError | TimeoutError):
            import logging

            logging.getLogger("aiovmm").error("a request failed", exc_info=error)
        self.connection.send({"op": "failed", "id": id_, "error": error_to_state(error)})

    async def _leave(self, number: int) -> None:
        if (guest := self._guests.get(number)) is not None:
            try:
                await guest.leave()
            finally:
                del self._guests[number]

    async def aclose(self) -> None:
        """End all guests."""
        await asyncio.gather(*(self._leave(number) for number in tuple(self._guests)), return_exceptions=True)


async def _alive() -> Plain:
    """What is asked all the time: that there is an answer is all."""
    return None


async def _refused() -> Plain:
    """What was asked for when its guest was about to leave, and comes when it has."""
    raise StateError("the guest has left")
