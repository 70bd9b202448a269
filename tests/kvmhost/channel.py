"""The client's end of the command channel: a session with the agent over the socket of the virtio-serial port."""

from __future__ import annotations

import json
import math
import os
import pathlib
import secrets
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import cast

from .errors import CommandRefused, HostLost
from .frames import Decoder, Frame, Kind, encode, split
from .messages import Hello, Request, Result, pack, unpack
from .results import Completed

# The agent says something at least once a second; its machine may be starved by others.
SILENCE = 120.0
_INTERRUPT_SECONDS = 5.0
_CHUNK = 256 * 1024
_STDIN_WINDOW = 1 << 20

Sink = Callable[[bytes], None]


@dataclass
class Streams:
    """What is at the client's end of a command's streams."""

    stdout: Sink
    stderr: Sink
    given: bytes | None = None  # all of standard input
    stdin_fd: int = -1  # or a descriptor to forward
    resized: Callable[[], list[int] | None] = lambda: None  # the new [rows, columns], if the terminal changed


class Channel:
    """One session. Leaving it ends whatever still runs."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.setblocking(False)
        self._decoder = Decoder()
        self._output = bytearray()
        self._frames: list[Frame] = []

    @classmethod
    def connect(cls, path: pathlib.Path) -> Channel:
        """OSError if nothing listens at `path`."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            # By way of the directory, whatever its length: socket addresses end at 107 bytes.
            connection.connect(f"/proc/self/fd/{directory}/{path.name}")
        except BaseException:
            connection.close()
            raise
        finally:
            os.close(directory)
        return cls(connection)

    def __enter__(self) -> Channel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def hello(self, timeout: float) -> Hello:
        """Open the session: the host's answer, once it is up. HostLost after `timeout` seconds."""
        nonce = secrets.token_hex(8)
        self._send(Frame(Kind.HELLO, pack(Hello(nonce))))
        deadline = time.monotonic() + timeout
        while True:
            frame = self._next(deadline, "did not answer")
            if frame.kind is Kind.HELLO:
                answer: Hello = unpack(Hello, frame.body)
                if answer.nonce == nonce:
                    return answer

    def execute(self, request: Request, streams: Streams) -> Result:
        """Run a command to its end. CommandRefused, HostLost.

        KeyboardInterrupt is passed on to the command, which has some seconds to end; after that, or at any other
        exception, leaving the session ends it.
        """
        self._send(Frame(Kind.EXEC, pack(request)))
        if streams.given is not None:
            self._send(*split(Kind.STDIN, streams.given), Frame(Kind.STDIN))
        try:
            return cast(Result, self._converse(request, streams))
        except KeyboardInterrupt:
            self.signal(signal.SIGINT)
            result = self._converse(request, streams, _INTERRUPT_SECONDS)
            if result is None:
                raise
            return result

    def signal(self, number: int) -> None:
        """Signal the command's process group."""
        self._send(Frame(Kind.SIGNAL, json.dumps(int(number)).encode()))

    def _converse(self, request: Request, streams: Streams, patience: float = math.inf) -> Result | None:
        """Relay until the command ends; None if it has not after `patience` seconds."""
        started = heard = time.monotonic()
        while time.monotonic() - started < patience:
            for frame in self._exchange(1.0, streams.stdin_fd):
                heard = time.monotonic()
                match frame.kind:
                    case Kind.STDOUT:
                        streams.stdout(frame.body)
                    case Kind.STDERR:
                        streams.stderr(frame.body)
                    case Kind.EXIT:
                        result: Result = unpack(Result, frame.body)
                        return result
                    case Kind.REFUSED:
                        raise CommandRefused(frame.body.decode(errors="replace"))
            if self._stdin_ready:
                self._forward(streams)
            size = streams.resized()
            if size:
                self._send(Frame(Kind.RESIZE, json.dumps(size).encode()))
            if time.monotonic() - heard > SILENCE:
                raise HostLost(f"the nested host was silent for {SILENCE:g} s while running {request.argv[0]}")
        return None

    _stdin_ready = False

    def _forward(self, streams: Streams) -> None:
        data = os.read(streams.stdin_fd, 64 * 1024)
        self._send(Frame(Kind.STDIN, data))
        if not data:
            streams.stdin_fd = -1

    # -- the socket

    def _send(self, *frames: Frame) -> None:
        for frame in frames:
            self._output += encode(frame)

    def _next(self, deadline: float, failure: str) -> Frame:
        while not self._frames:
            if time.monotonic() > deadline:
                raise HostLost(f"the nested host {failure} in time")
            self._frames += self._exchange(0.2, -1)
        return self._frames.pop(0)

    def _exchange(self, timeout: float, stdin: int) -> list[Frame]:
        """Send and receive what is possible within `timeout` seconds; note whether `stdin` has something."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._output else 0))
        if stdin >= 0 and len(self._output) < _STDIN_WINDOW:
            poll.register(stdin, select.POLLIN)
        events = dict(poll.poll(timeout * 1000))
        self._stdin_ready = bool(events.get(stdin, 0)) if stdin >= 0 else False
        mask = events.get(self._socket.fileno(), 0)
        try:
            if mask & select.POLLOUT:
                del self._output[: self._socket.send(self._output[:_CHUNK])]
            if mask & ~select.POLLOUT:
                return self._receive()
        except (BrokenPipeError, ConnectionResetError):
            raise HostLost("the nested host ended") from None
        return []

    def _receive(self) -> list[Frame]:
        data = self._socket.recv(_CHUNK)
        if not data:
            raise HostLost("the nested host ended")
        return self._decoder.feed(data)


def capture(channel: Channel, argv: list[str], given: bytes | None = None) -> bytes:
    """What `argv`, a command of the tool's own that has to succeed, says. CommandFailed if it does not succeed."""
    stdout, stderr = bytearray(), bytearray()
    request = Request(argv, "/", stdin=given is not None, timeout=120)
    result = channel.execute(request, Streams(stdout.extend, stderr.extend, given))
    Completed(argv, result.status, b"", bytes(stderr), result.seconds, result.timed_out).check()
    return bytes(stdout)
