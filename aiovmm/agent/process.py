"""A process in a guest, in the shape of asyncio.subprocess.Process."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Self, cast

from aiovmm.agent.channel import Channel
from aiovmm.agent.errors import AgentError, CommandNotFound, command_line, guest_os_error
from aiovmm.agent.gathered import Gathered
from aiovmm.agent.request import DEVNULL, PIPE, Request, Text, pty_size
from aiovmm.agent.wire import Kind, Stage, Stream, Whom
from aiovmm.errors import StateError
from aiovmm.runtime.arguments import bytes_like, whole
from aiovmm.runtime.sharing_reader import SharingReader

if TYPE_CHECKING:
    from aiovmm.agent.agent import Agent

__all__ = ["RUNNING", "Input", "Output", "Pieces", "Process", "create", "start", "start_error"]

_HIGH = 64 << 10  # bytes of input that wait before `drain` does
RUNNING = "running"
"""The `operation` of errors of a program that is there, and cannot be run."""
_STAGES = {
    Stage.USER: "becoming user",
    Stage.DIRECTORY: "changing to directory",
    Stage.LIMITS: "setting its limits",
    Stage.TERMINAL: "making a terminal",
    Stage.PROGRAM: RUNNING,
    Stage.RESOURCES: "starting",
}


class Input:
    """Standard input, as asyncio.StreamWriter has it. What is written after the reader has gone is lost, and `drain`
    says so."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._closing = False
        self._room = asyncio.Event()
        channel.on_room = self._room.set

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Never waits: `await drain()` after it."""
        if self._closing:
            raise StateError("this input has been closed")
        self._channel.write(data)

    def writelines(self, lines: Iterable[bytes]) -> None:
        """All of them."""
        self.write(b"".join(bytes_like(line, "a line of input") for line in lines))

    async def drain(self) -> None:
        """Until there is room for more. Raises BrokenPipeError if nobody reads it any more."""
        while self._channel.waiting > _HIGH:
            self._room.clear()
            await self._room.wait()
        if self._channel.input_ends and not self._closing:
            raise BrokenPipeError(errno.EPIPE, "the process in the guest reads no more input")

    def can_write_eof(self) -> bool:
        """Yes."""
        return True

    def write_eof(self) -> None:
        """No more comes. On a terminal this is ^D."""
        self._closing = True
        self._channel.write_eof()

    def close(self) -> None:
        """The same."""
        self.write_eof()

    def is_closing(self) -> bool:
        """Whether it has been closed."""
        return self._closing

    async def wait_closed(self) -> None:
        """Until all that was written has been sent."""
        while self._channel.waiting:
            self._room.clear()
            await self._room.wait()


class Output:
    """A stream of the guest into a StreamReader, which says when it is full by pausing what it takes for its
    transport."""

    def __init__(self, channel: Channel, stream: Stream, window: int) -> None:
        self.reader = SharingReader(limit=max(window // 2, 1 << 16))
        self.reader.set_transport(cast(asyncio.Transport, self))
        self._channel = channel
        self._stream = stream
        self._paused = False
        channel.sinks[stream] = self

    def feed(self, data: bytes) -> bool:
        """See channel.Sink."""
        self.reader.feed_data(data)
        return not self._paused

    def end(self) -> None:
        """See channel.Sink."""
        self.reader.feed_eof()

    def pause_reading(self) -> None:
        """The reader has enough."""
        self._paused = True

    def resume_reading(self) -> None:
        """It has not."""
        self._paused = False
        self._channel.taken(self._stream)

    def get_extra_info(self, name: str, default: object = None) -> object:
        """Of a transport: nothing."""
        return default

    def is_closing(self) -> bool:
        """Of a transport."""
        return self._channel.over


class Pieces:
    """A stream of the guest as it comes, for one who takes much at a time: nothing is copied together that is not wanted so."""

    def __init__(self, channel: Channel, stream: Stream, window: int) -> None:
        self._channel = channel
        self._stream = stream
        self._most = window // 2
        self._pieces = Gathered()
        self._ended = False
        self._news = asyncio.Event()
        channel.sinks[stream] = self

    def feed(self, data: bytes) -> bool:
        """See channel.Sink."""
        self._pieces.add(data)
        self._news.set()
        return self._pieces.size < self._most

    def end(self) -> None:
        """See channel.Sink."""
        self._ended = True
        self._news.set()

    async def take(self) -> list[bytes]:
        """What has come since, at least something; nothing at the end."""
        while not self._pieces.size and not self._ended:
            self._news.clear()
            await self._news.wait()
        pieces = self._pieces.take()
        self._channel.taken(self._stream)
        return pieces


class Process:
    """`stdin`, `stdout`, `stderr` are streams, or None where no pipe was asked for; with a terminal all is `stdin` and
    `stdout`.

    Its process group is its own: signals go to all of it. Left by `async with` it is ended, if it has not ended itself.
    If the guest or its agent is lost, `wait` and `communicate` raise AgentLost, and the streams end.
    """

    def __init__(self, agent: Agent, channel: Channel, request: Request) -> None:
        self._agent = agent
        self._channel = channel
        self._request = request
        self._changed = asyncio.Event()
        channel.on_settled = channel.on_exit = channel.on_over = self._changed.set
        modes, pty = request.modes, request.pty is not None
        self.stdin = Input(channel) if pty or modes[0] == PIPE else None
        self.pieces = Pieces(channel, Stream.STDOUT, request.window) if request.applet else None
        self.stdout = self._output(Stream.STDOUT) if not request.applet and (pty or modes[1] == PIPE) else None
        self.stderr = self._output(Stream.STDERR) if not pty and modes[2] == PIPE else None

    def _output(self, stream: Stream) -> asyncio.StreamReader:
        return Output(self._channel, stream, self._request.window).reader

    def __repr__(self) -> str:
        state = "runs" if self.returncode is None else f"ended with {self.returncode}"
        return f"<Process {self.pid} in {self._agent.place.name}, {state}>"

    @property
    def pid(self) -> int:
        """In the guest."""
        return self._channel.started or 0

    @property
    def returncode(self) -> int | None:
        """None while it runs; its status, or the number of the signal that ended it, below zero."""
        return self._channel.exit

    async def started(self) -> None:
        """Until it runs. Raises CommandNotFound, GuestOSError, AgentLost."""
        await self._until(lambda: self._channel.started is not None or self._channel.failed is not None)
        if self._channel.failed is not None:
            raise start_error(self._channel.failed, self._request)

    async def wait(self) -> int:
        """Its returncode. Cancelling this does not end it. As with asyncio: it may wait for somebody to read its
        output."""
        await self._until(lambda: self._channel.exit is not None)
        assert self._channel.exit is not None
        return self._channel.exit

    async def _until(self, done: Callable[[], bool]) -> None:
        while not done():
            if self._channel.over:
                raise await self._agent.lost(command_line([os.fsencode(word) for word in self._request.args]))
            self._changed.clear()
            await self._changed.wait()

    async def communicate(self, input: bytes | None = None) -> tuple[bytes | None, bytes | None]:
        """Send `input`, read all output, wait for the end: (stdout, stderr), None for what is no pipe. Raises StateError for
        input that there is no pipe for, or that comes after its end."""
        data = b"" if input is None else bytes_like(input, "input")
        if data and (self.stdin is None or self.stdin.is_closing()):
            raise StateError("this process takes no input" if self.stdin is None else "this input has been closed")
        stdout, stderr, _ = await asyncio.gather(_read(self.stdout), _read(self.stderr), self._feed(data))
        await self.wait()
        return stdout, stderr

    async def _feed(self, data: bytes | bytearray) -> None:
        if self.stdin is None or self.stdin.is_closing():
            return
        try:
            self.stdin.write(data)
            await self.stdin.drain()
        except BrokenPipeError:
            pass
        self.stdin.close()

    def send_signal(self, number: int, *, whom: Whom = Whom.GROUP) -> None:
        """To its process group; with Whom.PROCESS to it alone, with Whom.SESSION to every process that has not left its
        session. Raises ProcessLookupError if it has ended."""
        whole(number, "send_signal(number)", 0, 64)
        if self.returncode is not None or self._channel.over:
            raise ProcessLookupError(errno.ESRCH, "the process in the guest has ended")
        self._channel.signal(int(number), whom)

    def terminate(self) -> None:
        """SIGTERM to its process group."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to its whole session."""
        self.send_signal(signal.SIGKILL, whom=Whom.SESSION)

    def resize(self, columns: int, rows: int) -> None:
        """Its terminal; its foreground process group gets SIGWINCH. Raises StateError if it has none."""
        if self._request.pty is None:
            raise StateError("this process has no terminal: create_process(..., pty=True)")
        self._channel.resize(whole(columns, "resize(columns)", 1, 65535), whole(rows, "resize(rows)", 1, 65535))

    def close(self) -> None:
        """End its whole session, if it has not ended, and let its streams go. Idempotent."""
        self._channel.close(kill=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.close()


async def create(
    agent: Agent,
    args: Sequence[Text],
    streams: tuple[int | None, int | None, int | None],
    *,
    pty: bool | tuple[int, int] | None = None,
    env: Mapping[str, Text] | None = None,
    cwd: Text | None = None,
    user: str | int | None = None,
    limits: Mapping[str, int | tuple[int, int]] | None = None,
    ends: bool = False,
) -> Process:
    """See `vm.create_process`. `ends`: its output ends with it, whoever else has it open."""
    stdin, stdout, stderr = (DEVNULL if mode is None else mode for mode in streams)
    modes = (stdin, stdout, stderr)
    size = pty_size(pty)
    asked = Request(args=args, env=env or {}, cwd=cwd, user=user, limits=limits or {}, modes=modes, pty=size, ends=ends)
    return await start(agent, asked)


async def start(agent: Agent, request: Request) -> Process:
    """Raises UsageError, CommandNotFound, GuestOSError, AgentLost, BootTimeout. A start that is cancelled has started
    nothing."""
    payload = request.payload()
    process = Process(agent, await agent.begin(Kind.START, payload, window=request.window), request)
    try:
        await process.started()
    except BaseException:
        process.close()
        raise
    return process


def start_error(failed: tuple[int, int], request: Request) -> AgentError:
    """Of a process that did not start."""
    number, stage = failed
    program = os.fsdecode(request.args[0])
    if stage == Stage.PROGRAM and number == errno.ENOENT:
        return CommandNotFound(RUNNING, number, program)
    if stage == Stage.USER and number == errno.ESRCH:
        files = "/etc/passwd, or its group not in its /etc/group" if ":" in str(request.user) else "/etc/passwd"
        return guest_os_error(f"user {request.user!r} is not in the guest's {files}", errno.ENOENT)
    where = (
        {Stage.DIRECTORY: os.fsdecode(request.cwd or "/"), Stage.USER: request.user}.get(Stage(stage), program)
        if stage in _STAGES
        else program
    )
    return guest_os_error(_STAGES.get(cast(Stage, stage), "starting"), number, str(where))


async def _read(reader: asyncio.StreamReader | None) -> bytes | None:
    return None if reader is None else await reader.read()
