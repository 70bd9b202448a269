"""One worker as its pool sees it: a process, the socket to it, what it was asked, and the guests in it.

start ──► confined ──► hello ──► asked, and heard ──► close       asked all the time whether it is there: heartbeat.py
     it dies, breaks the protocol, or does not answer ──► killed, reaped, told
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from errno import ENOENT
from functools import partial
from typing import Protocol

from aiovmm.errors import HostError, PeerError, not_started
from aiovmm.lifecycle import ExitStatus
from aiovmm.pool.workers import passing
from aiovmm.pool.workers.connection import Connection, connect
from aiovmm.pool.workers.heartbeat import Heartbeat
from aiovmm.pool.workers.plain import WorkerLost, error_of, status_of
from aiovmm.pool.workers.voice import Voice
from aiovmm.runtime.awake import awake_later, awake_timeout
from aiovmm.runtime.child import Child
from aiovmm.runtime.plain import Fields, Plain, State
from aiovmm.runtime.tasks import finish

__all__ = ["PATIENCE", "SILENCE", "Remote", "Request", "Worker"]

_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[3])
from aiovmm.pool.workers.program import main
main(int(sys.argv[1]), int(sys.argv[4]), int(sys.argv[2]))
"""
PATIENCE = 30.0
"""Seconds that a worker has for what may not be waited for for ever: to end a guest, to take it apart, to heed a cancellation."""
SILENCE = 30.0
"""Seconds of it after which a worker is lost, whether or not anybody has asked it for something."""
_START = 60.0  # seconds to its first word, on a machine that is busy
_END = 20.0  # to its end, once it was told; it has its own patience with its guests, which is less
_LAST_WORD = 1.0  # between the ends of its socket and of itself


Heard = Callable[[Plain], object]
"""Raises SnapshotError for what is no answer."""


class Remote(Protocol):
    """A guest in a worker: what is heard of it."""

    def heard(self, op: str, fields: Fields, data: bytes) -> None:
        """Raises PeerError, SnapshotError for what cannot be."""

    def ended(self, status: ExitStatus) -> None:
        """It has ended; the first of its ends counts."""

    def lost(self, error: WorkerLost) -> None:
        """So has its worker."""


class Request:
    """One that is under way: `reply`, and `cancel` if nobody wants it any more; then there is a reply all the same."""

    def __init__(self, reply: asyncio.Future[Plain], cancel: Callable[[], None]) -> None:
        self.reply = reply
        self.cancel = cancel


class Worker:
    """Made by `start`. `gone` is called once, when nothing of it is there any more. `lost` is how it ended, once it has."""

    def __init__(self, index: int, pool: str, gone: Callable[[Worker], None]) -> None:
        self.index = index
        self.guests: dict[int, Remote] = {}
        self.lost: WorkerLost | None = None
        self.pid = 0
        self._name = f"worker {index} of pool {pool!r}"
        self._voice = Voice(self._name)
        self._gone = gone
        self._requests: dict[int, asyncio.Future[Plain]] = {}
        self._hearers: dict[int, Heard] = {}  # of some of their replies
        self._count = 0
        self._closing = False
        self._silent = ""  # what it has not answered to
        self._hello: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._connection: Connection | None = None
        self._passing: socket.socket | None = None  # for what goes with requests
        self._task: asyncio.Task[None] | None = None
        self._heartbeat: Heartbeat | None = None

    def __repr__(self) -> str:
        return f"<Worker {self.index} pid {self.pid}: {self.lost or f'{len(self.guests)} guests'}>"

    async def start(self, confined: State) -> None:
        """Until it has given up rights as `confined` says (confined.to_state_of), and said hello. Raises HostError, WorkerLost,
        and what it could not be confined for; then there is nothing of it. Not to be cancelled."""
        if not sys.executable:
            raise HostError(f"start {self._name}", ENOENT, "sys.executable does not name an interpreter: have it do so")
        try:
            process, self._connection = await self._joined()
        except OSError as exc:
            raise not_started(f"start {self._name}", exc, sys.executable) from exc
        self.pid = process.pid
        self._task = asyncio.get_running_loop().create_task(self._follow(process, self._connection), name=self._name)
        self.tell("confine", 0, **confined)
        if self._silent:  # it has been given up before there was a connection
            self._connection.abort()
        try:
            async with awake_timeout(_START):
                await self._hello
        except TimeoutError:
            self.give_up(f"had not begun after {_START:g} s")
            await self.over()
            assert self.lost is not None, "it has ended"
            raise WorkerLost(self.lost.what) from None
        except Exception:  # any that it may say
            await self.over()
            raise
        self._heartbeat = Heartbeat(lambda: self.request("alive", 0).reply, self._mute, SILENCE)

    def _mute(self) -> None:
        self.give_up(f"had not answered for {SILENCE:g} s: it was stopped, or hangs")

    async def _joined(self) -> tuple[Child, Connection]:
        with ExitStack() as stack:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            stack.callback(ours.close)
            with theirs:
                passing_ours, passing_theirs = passing.pair()
                stack.callback(passing_ours.close)
                with passing_theirs:
                    process = self._spawn(theirs.fileno(), passing_theirs.fileno())
            try:
                connection = await connect(ours, self._heard)
            except BaseException:
                await process.aclose()
                raise
            self._passing = passing_ours
            stack.pop_all()
            return process, connection

    def _spawn(self, fd: int, passing_fd: int) -> Child:
        path = json.dumps([each for each in sys.path if isinstance(each, str)])
        command = [sys.executable, "-P", "-c", _PROGRAM, str(fd), str(os.getpid()), path, str(passing_fd)]
        return Child(command, pass_fds=(fd, passing_fd), hear=self._voice.hear)

    def request(
        self, op: str, vm: int, passing_on: socket.socket | None = None, heard: Heard | None = None, **fields: Plain
    ) -> Request:
        """Ask it for something, and have it take a copy of `passing_on`. Raises WorkerLost, HostError if that cannot be sent now,
        UsageError for what is too large. The reply is a value, which is `heard` in its turn, whoever waits for it still, or an
        error."""
        if self.lost is not None:
            raise WorkerLost(self.lost.what)
        self._count += 1
        id_, reply = self._count, asyncio.get_running_loop().create_future()
        if passing_on is not None and self._passing is not None:
            passing.hand_over(self._passing, id_, passing_on)
        self.tell(op, vm, id=id_, **fields)
        self._requests[id_] = reply
        if heard is not None:
            self._hearers[id_] = heard
        reply.add_done_callback(lambda reply: reply.cancelled() or reply.exception())  # seen: who asked may be gone
        return Request(reply, lambda: self._cancel(vm, id_, reply))

    def _cancel(self, vm: int, id_: int, reply: asyncio.Future[Plain]) -> None:
        self.tell("cancel", vm, id=id_)
        why = f"had not let go of what it was asked for after {PATIENCE:g} s"
        call_off = awake_later(PATIENCE, partial(self.give_up, why))
        reply.add_done_callback(lambda _: call_off())

    async def ask(
        self, op: str, vm: int, passing_on: socket.socket | None = None, heard: Heard | None = None, **fields: Plain
    ) -> Plain:
        """A request to its end: one that is cancelled has its reply first, which comes soon then."""
        request = self.request(op, vm, passing_on, heard, **fields)
        return await finish(request.reply, request.cancel)

    @contextmanager
    def patience(self, op: str, seconds: float | None) -> Iterator[None]:
        """For an answer to `op` that it is to have within so many seconds (None: some time). It is killed if it is late."""
        if seconds is None:
            yield
            return
        late = max(seconds, 0) + PATIENCE
        call_off = awake_later(late, partial(self.give_up, f"had not answered {op!r} after {late:g} s"))
        try:
            yield
        finally:
            call_off()

    def tell(self, op: str, vm: int, data: bytes = b"", **fields: Plain) -> None:
        """Something without a reply."""
        if self._connection is not None and self.lost is None:
            self._connection.send({"op": op, "vm": vm, **fields}, data)

    def give_up(self, why: str) -> None:
        """It does not do what it should: it is killed. Idempotent."""
        self._silent = self._silent or why
        if self._connection is not None:
            self._connection.abort()

    async def over(self) -> None:
        """Wait until nothing of it is there any more."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def aclose(self) -> None:
        """Tell it to end, and wait for that. Idempotent; completes even if the caller is cancelled."""
        self._closing = True
        if self._heartbeat is not None:
            self._heartbeat.close()
        if self._connection is not None:
            self._connection.close()
            call_off = awake_later(_END, self._connection.abort)  # it may read no more of what it was sent before
            try:
                await finish(self.over())
            finally:
                call_off()

    # -- what it says

    def _heard(self, message: State, data: bytes) -> None:
        fields = Fields(message, "frame")
        op = fields.text("op")
        if op == "hello":
            self._greeted(fields)
        elif op in ("done", "failed"):
            self._answered(op, fields)
        elif (guest := self.guests.get(number := fields.number("vm"))) is None:
            raise PeerError(f"{op!r} of guest {number}, who is not in it")
        elif op == "ended":
            guest.ended(status_of(fields.state("status")))
        else:
            guest.heard(op, fields, data)

    def _greeted(self, fields: Fields) -> None:
        error = None if fields.absent("error") else error_of(fields.state("error"))
        if self._hello.done():
            raise PeerError("it has said hello before")
        if error is not None:
            self._hello.set_exception(error)
        else:
            self._hello.set_result(None)

    def _answered(self, op: str, fields: Fields) -> None:
        reply = self._requests.get(id_ := fields.number("id"))
        if reply is None:
            raise PeerError(f"an answer to {id_}, which was not asked")
        error = error_of(fields.state("error")) if op == "failed" else None
        value = None if error is not None or fields.absent("value") else fields.state("value")
        if (heard := self._hearers.pop(id_, None)) is not None and error is None:
            heard(value)
        if reply.done():  # who waited for it has just given up
            pass
        elif error is not None:
            reply.set_exception(error)
        else:
            reply.set_result(value)
        del self._requests[id_]  # not before: whoever waits for an answer that is none hears of the worker's end

    # -- its end

    async def _follow(self, process: Child, connection: Connection) -> None:
        ended = asyncio.ensure_future(process.wait())
        over = asyncio.ensure_future(connection.over.wait())
        try:
            await asyncio.wait((ended, over), return_when=asyncio.FIRST_COMPLETED)
            if not (connection.error or self._silent):
                await asyncio.wait((ended, over), timeout=_END if self._closing else _LAST_WORD)
        finally:
            if self._heartbeat is not None:
                self._heartbeat.close()
            process.kill()
            over.cancel()
            await finish(asyncio.wait([ended]))
            process.said(2, 0)  # the last of it
            await process.aclose()
            self._voice.end()
            connection.abort()
            if self._passing is not None:
                self._passing.close()
            self._lose(WorkerLost(f"{self._name} (process {self.pid}) {self._how(ended, connection)}"))

    def _how(self, ended: asyncio.Future[int], connection: Connection) -> str:
        if connection.error is not None:
            return f"broke the protocol: {connection.error}"
        if self._silent:
            return self._silent
        if self._closing:
            return "was closed"
        code = 0 if ended.cancelled() else ended.result()
        if code == -signal.SIGKILL:
            return "was killed by signal 9: by somebody, or for want of memory (`dmesg`, and memory.events of its cgroup, tell)"
        return f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"

    def _lose(self, error: WorkerLost) -> None:
        self.lost = error
        for future in (self._hello, *self._requests.values()):
            if not future.done():
                future.set_exception(WorkerLost(error.what))
        if not self._hello.cancelled():
            self._hello.exception()  # seen
        self._requests.clear()
        self._hearers.clear()
        for guest in tuple(self.guests.values()):
            guest.lost(error)
        self._gone(self)
