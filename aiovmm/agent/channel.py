"""One channel, seen from the host: what was sent, what may be, what has come. Pure: it returns frames, and calls its
sinks.

                START                STARTED                  CLOSED
    (new) ───────────────► asked ───────────────► open ───────────────► over
                             └────────────────FAILED────────────────────►┘
    while it is open: DATA, EOF, CREDIT both ways; EXIT once. We CLOSE it when we want nothing more; what crosses that
    is not heard.

Credit counts bytes. The agent may have at most `window` bytes of each stream under way or with us unread, and is held
to that: more is a PeerError, which ends the link. So is credit for more input than it has said that it takes: what
nobody reads would be the host's memory.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import Protocol

from aiovmm.agent.wire import Frame, Kind, Stream, errno_of, frame, number_of, numbers_of
from aiovmm.errors import PeerError
from aiovmm.runtime.arguments import bytes_like

__all__ = ["Channel", "Sink"]

_SMALL = 4096  # bytes of a piece of input that is cheaper to copy than to keep
_CHUNK = 128 << 10  # bytes of input in a frame: more than one are under way


class Sink(Protocol):
    """Where a stream of the guest goes."""

    def feed(self, data: bytes) -> bool:
        """Take it; whether there is room for more. If not, `Channel.taken` says when."""
        ...

    def end(self) -> None:
        """No more comes."""
        ...


class Channel:
    """See the module. `send` takes frames; `forget` hears the number when we have closed it. The guest's side of it is
    `received`.

    `on_settled`: it is open, or has failed. `on_exit`: its process has ended. `on_over`: nothing more comes. `on_room`:
    input has been taken. `on_accepted`: a listener's connection, by its number.
    """

    def __init__(
        self,
        number: int,
        send: Callable[[bytes], None],
        *,
        input_window: int,
        window: int,
        forget: Callable[[int], object] = lambda number: None,
    ) -> None:
        self.number = number
        self.started: int | None = None  # the pid, or the port
        self.failed: tuple[int, int] | None = None  # errno and stage
        self.exit: int | None = None
        self.over = False
        self.input_ends = False  # nobody reads our input any more
        self.sinks: dict[int, Sink] = {}
        self.waiting = 0  # bytes of input without credit
        self._input: deque[memoryview] = deque()  # they,
        self._small = bytearray()  # and behind them what came in small pieces, which are one
        self.on_settled: Callable[[], None] = _nothing
        self.on_exit: Callable[[], None] = _nothing
        self.on_over: Callable[[], None] = _nothing
        self.on_room: Callable[[], None] = _nothing
        self.on_accepted: Callable[[int], None] = _ignore
        self._send = send
        self._forget = forget
        self._credit = self._input_window = input_window
        self._window = window
        self._granted = {Stream.STDOUT: window, Stream.STDERR: window}
        self._owed = {Stream.STDOUT: 0, Stream.STDERR: 0}
        self._full: set[int] = set()
        self._eof = self._eof_sent = False

    # -- to the guest --------------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Input; what there is no credit for waits here."""
        data = bytes_like(data, "input")  # before anything is counted: what waits here is another's, too
        if self.over or self.input_ends or self._eof or not data:
            return
        self.waiting += len(data)
        if len(data) <= _SMALL:
            self._small += data
        else:
            self._gather()
            self._input.append(memoryview(bytes(data)))
        self._flush()

    def write_eof(self) -> None:
        """Behind all input. Idempotent."""
        if not self._eof:
            self._eof = True
            self._flush()

    def _flush(self) -> None:
        while self.waiting and self._credit:
            data = self._taken(min(self._credit, _CHUNK))
            self.waiting -= len(data)
            self._credit -= len(data)
            self._send(frame(self.number, Kind.DATA, data))
        if self._eof and not self._eof_sent and not self.waiting and not self.over:
            self._eof_sent = True
            self._send(frame(self.number, Kind.EOF))

    def _taken(self, most: int) -> memoryview:
        """The next bytes of one piece of input."""
        if not self._input:
            self._gather()
        first = self._input.popleft()
        if len(first) > most:
            self._input.appendleft(first[most:])
        return first[:most]

    def _gather(self) -> None:
        if self._small:
            self._input.append(memoryview(bytes(self._small)))
            self._small.clear()

    def _forget_input(self) -> None:
        self.waiting = 0
        self._small.clear()
        self._input.clear()

    def signal(self, number: int, whom: int) -> None:
        """To its process."""
        self._send(frame(self.number, Kind.SIGNAL, struct.pack("<II", number, whom)))

    def resize(self, columns: int, rows: int) -> None:
        """Its terminal."""
        self._send(frame(self.number, Kind.RESIZE, struct.pack("<HH", rows, columns)))

    def close(self, *, kill: bool) -> None:
        """We want nothing more of it. With `kill` its whole session is ended. Idempotent."""
        if not self.over:
            self._send(frame(self.number, Kind.CLOSE, struct.pack("<I", kill)))
            self._forget(self.number)  # what crosses that is nobody's
            self.end()

    def taken(self, stream: int) -> None:
        """A sink has room again."""
        self._full.discard(stream)
        self._pay(stream)

    def _pay(self, stream: int) -> None:
        """Credit, a quarter of the window at a time at least."""
        owed = self._owed[Stream(stream)]
        if owed >= self._window // 4 and stream not in self._full and not self.over:
            self._owed[Stream(stream)] = 0
            self._granted[Stream(stream)] += owed
            self._send(frame(self.number, Kind.CREDIT, struct.pack("<I", owed), stream))

    # -- from the guest ------------------------------------------------------------------------------------------------

    def received(self, frame: Frame) -> None:
        """Raises PeerError for what no agent says."""
        if frame.kind == Kind.DATA:  # the hot one
            self._data(frame.stream, frame.payload)
        elif (handler := _HANDLERS.get(frame.kind)) is not None:
            handler(self, frame)
        else:
            raise PeerError(f"the agent in the guest sent a frame of kind {frame.kind} on a channel")

    def _data(self, stream: int, data: bytes) -> None:
        sink = self.sinks.get(stream)
        if not data:  # there would be no end of them
            raise PeerError(f"the agent in the guest sent no bytes of stream {stream}")
        if sink is None or len(data) > self._granted[stream]:  # type: ignore[index]
            raise PeerError(
                f"the agent in the guest sent {len(data)} bytes of stream {stream} that it had no credit for"
            )
        self._granted[stream] -= len(data)  # type: ignore[index]
        self._owed[stream] += len(data)  # type: ignore[index]
        if not sink.feed(data):
            self._full.add(stream)
        self._pay(stream)

    def _on_eof(self, frame: Frame) -> None:
        if frame.stream == Stream.STDIN:
            self.input_ends = True
            self._forget_input()
            self.on_room()
        elif (sink := self.sinks.pop(frame.stream, None)) is not None:
            sink.end()

    def _on_credit(self, frame: Frame) -> None:
        self._credit += number_of(frame)
        if self._credit > self._input_window:
            raise PeerError(
                f"the agent in the guest gave credit for {self._credit} bytes, and has said that it keeps less"
            )
        if not self.input_ends:
            self._flush()
        self.on_room()

    def _on_started(self, frame: Frame) -> None:
        if self.started is None and self.failed is None:
            self.started = number_of(frame)
            self.on_settled()

    def _on_failed(self, frame: Frame) -> None:
        if self.started is None and self.failed is None:
            number, stage = numbers_of(frame)
            self.failed = errno_of(number), stage
            self.on_settled()

    def _on_exit(self, frame: Frame) -> None:
        if self.exit is None:
            self.exit = number_of(frame, signed=True)
            self.on_exit()

    def _on_accepted(self, frame: Frame) -> None:
        self.on_accepted(number_of(frame))

    def _on_closed(self, frame: Frame) -> None:
        self.end()

    def end(self) -> None:
        """Nothing more comes, whatever was still to come. Idempotent."""
        if self.over:
            return
        self.over = self.input_ends = True
        self._forget_input()
        for stream in list(self.sinks):
            self.sinks.pop(stream).end()
        self.on_room()
        self.on_over()


def _nothing() -> None:
    pass


def _ignore(number: int) -> None:
    pass


_HANDLERS: dict[int, Callable[[Channel, Frame], None]] = {
    Kind.EOF: Channel._on_eof,
    Kind.CREDIT: Channel._on_credit,
    Kind.STARTED: Channel._on_started,
    Kind.FAILED: Channel._on_failed,
    Kind.EXIT: Channel._on_exit,
    Kind.ACCEPTED: Channel._on_accepted,
    Kind.CLOSED: Channel._on_closed,
}
