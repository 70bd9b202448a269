"""The console that a program holds: what the guest prints as async streams, and what is typed to it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from aiovmm.console.device import ByteDevice, ResizableDevice
from aiovmm.console.input import INPUT_LIMIT, InputQueue
from aiovmm.console.keys import DEFAULT_DETACH
from aiovmm.console.reader import CHUNK, ConsoleReader, OutputLog
from aiovmm.console.search import OVERLAP, Pattern
from aiovmm.errors import UsageError
from aiovmm.runtime.home import HomeLoop, Use

if TYPE_CHECKING:
    from aiovmm.console.terminal import AttachEnd, Terminal
    from aiovmm.console.view import ConsoleView
    from aiovmm.runtime.plain import State

__all__ = ["DEFAULT_HISTORY", "Console"]

DEFAULT_HISTORY = 1 << 20
"""Bytes of output that are kept."""

_LONGEST = 0xFFFF  # columns or rows, of a device's register and of struct winsize


class Console:
    """Async streams over a byte device (a serial port, a virtio console).

    Output is kept once, in a ring of `history` bytes, however many read it: a reader is a cursor. A reader that is slow
    or absent costs nothing and stalls nobody; it loses the oldest bytes and is told how many. The console is one such
    reader itself (`read`, `readline`, `expect`, ...), from the first byte on; `reader()` gives more.

    Input goes through a queue of bounded size: `write` then `await drain()`, as with asyncio.StreamWriter, or
    `await send(data)` for data of any size.

    All methods belong to the event loop's thread, and waiting ones to the loop (`home`, None: the first that one is called on).
    `absent` says why there is no such device: then whoever reads or writes gets it as a StateError. The device's side is
    `feed`, and `close` when the guest is gone.
    """

    def __init__(
        self,
        device: ByteDevice | None = None,
        *,
        history: int = DEFAULT_HISTORY,
        name: str = "console",
        home: HomeLoop | None = None,
        absent: str = "",
    ) -> None:
        self.name = name
        self.place = ""
        """Where else it is: the path of its pseudo-terminal, socket or file; "" if only the program has it."""
        self.place_error: Exception | None = None
        """What that place has failed with, so that output is missing there. It may fail with the last of the output only when
        the guest has ended, after all events."""
        self._use = Use(home or HomeLoop(f"console {name!r}"), absent)
        self._log = OutputLog(history, self._use)
        self._main = ConsoleReader(self._log, 0)
        self._input = InputQueue(use=self._use)
        self._device: ByteDevice | None = None
        self._size: tuple[int, int] | None = None
        self._copy: Console | None = None
        if device is not None:
            self.connect(device)

    def __repr__(self) -> str:
        state = "ended" if self.closed else "open"
        return f"<Console {self.name} {state}, {self._log.ring.end} bytes out, {len(self._input)} waiting to go in>"

    # The device's side.

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Output of the guest. Never waits and never fails; costs one copy of `data`. Ignored after `close`."""
        if not self._log.ended:
            self._log.feed(data)
        if self._copy is not None:
            self._copy.feed(data)

    def skip(self, size: int) -> None:
        """So many bytes of output were lost on their way here: readers are told, as if they had been too slow."""
        if size and not self._log.ended:
            self._log.ring.skip(size)

    def copy_to(self, other: Console | None) -> None:
        """What the guest says here from now on is said at `other` too, at once: two consoles on one terminal."""
        if not isinstance(other, Console | None):
            raise UsageError(f"copy_to({other!r}): that is no Console")
        self._copy = other

    def appear(self) -> str:
        """There is such a device from now on, if there was none; why not, for `vanish`."""
        return self._use.appear()

    def vanish(self, absent: str) -> None:
        """It did not come after all."""
        self._use.vanish(absent)

    def connect(self, device: ByteDevice | None) -> None:
        """Give input to `device` from now on; what was written before there was one is delivered now. None: keep it again."""
        self._device = device
        self._input.connect(device)
        if self._size is not None:
            self.resize(*self._size)

    def save(self) -> State:
        """For a snapshot: the input that the device has not taken. What the guest has printed stays here."""
        return {"input": self._input.waiting}

    def load(self, state: State) -> None:
        """That input comes before any that was written here. Raises SnapshotError."""
        from aiovmm.runtime.plain import Fields

        fields = Fields(state, self.name)
        waiting = fields.data("input", most=2 * INPUT_LIMIT)
        fields.end()
        self._input.restore(waiting)

    def disconnect(self, device: object) -> None:
        """Keep input again, if `device` was given it."""
        if self._device is device:
            self.connect(None)

    def close(self) -> None:
        """The guest is gone: readers get what is left and then the end, writers ConsoleEnded. Idempotent."""
        self._log.end()
        self._input.end()
        self._device = None

    # The program's side: output.

    @property
    def closed(self) -> bool:
        """True once the guest is gone. What it printed can still be read."""
        return self._log.ended

    async def wait_closed(self) -> None:
        """Wait until the guest is gone."""
        self._use.check_waiting()
        await self._log.over.wait()

    @property
    def bytes_out(self) -> int:
        """What the guest has printed, in bytes, over all time."""
        return self._log.ring.end

    @property
    def bytes_in(self) -> int:
        """What the guest's device has taken, likewise."""
        return self._input.delivered

    @property
    def history(self) -> bytes:
        """The newest output, at most the history's size in bytes, read or not."""
        return self._log.ring.read(self._log.ring.start)

    @property
    def history_lost(self) -> int:
        """Bytes of output that were printed before those in `history`."""
        return self._log.ring.start

    @property
    def lost(self) -> int:
        """Bytes that the console's own cursor has lost by being too slow."""
        return self._main.lost

    @property
    def unread(self) -> bytes:
        """What the console's own cursor could read without waiting."""
        return self._main.unread

    def reader(self, *, from_history: bool = True) -> ConsoleReader:
        """A further reader, from the oldest output that is kept, or from what is printed next."""
        return ConsoleReader(self._log, self._log.ring.start if from_history else self._log.ring.end)

    def view(self, *, history: bool = True) -> ConsoleView:
        """Output for a person's terminal, from the beginning of the history or from now on."""
        now = self._log.ring.end
        from aiovmm.console.view import ConsoleView

        return ConsoleView(self.reader(from_history=history), self._log.ring.start, now if history else 0)

    async def read(self, n: int = CHUNK) -> bytes:
        """See ConsoleReader.read."""
        return await self._main.read(n)

    async def readexactly(self, n: int) -> bytes:
        """See ConsoleReader.readexactly."""
        return await self._main.readexactly(n)

    async def readuntil(self, separator: bytes = b"\n") -> bytes:
        """See ConsoleReader.readuntil."""
        return await self._main.readuntil(separator)

    async def readline(self) -> bytes:
        """See ConsoleReader.readline."""
        return await self._main.readline()

    async def expect(
        self, pattern: Pattern | Sequence[Pattern], timeout: float | None = 30.0, *, overlap: int = OVERLAP
    ) -> re.Match[bytes]:
        """See ConsoleReader.expect."""
        return await self._main.expect(pattern, timeout, overlap=overlap)

    def at_eof(self) -> bool:
        """See ConsoleReader.at_eof."""
        return self._main.at_eof()

    def lines(self) -> AsyncIterator[bytes]:
        """See ConsoleReader.lines."""
        return self._main.lines()

    def __aiter__(self) -> ConsoleReader:
        return self._main

    # The program's side: input.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Queue all of `data` for the guest, without waiting. Follow it by `await drain()`.

        Raises StateError, with nothing queued, if more than 1 MiB would wait for a guest that does not read (then use
        `send`), and ConsoleEnded if the guest is gone.
        """
        self._input.put(data)

    async def drain(self) -> None:
        """Wait until the input queue, if it was above 64 KiB, is down to 16 KiB. Raises ConsoleEnded."""
        await self._input.drain()

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Queue `data`, of any size, as the guest makes room. Of a cancelled `send` the guest gets some beginning.

        Two tasks that send more than fits at once may find their data interleaved. Raises ConsoleEnded.
        """
        await self._input.send(data)

    @property
    def input_waiting(self) -> int:
        """Bytes that the device has not taken yet."""
        return len(self._input)

    # Terminals.

    def resize(self, cols: int, rows: int) -> None:
        """The terminal's size, for a device that can tell the guest (kept for one that is connected later). Raises UsageError for
        what is no size."""
        from aiovmm.runtime.arguments import whole  # for who asks

        whole(cols, "cols", 0, _LONGEST)
        whole(rows, "rows", 0, _LONGEST)
        self._size = (cols, rows)
        if isinstance(self._device, ResizableDevice):
            self._device.resize(cols, rows)

    async def attach(
        self, terminal: Terminal | None = None, *, detach: bytes = DEFAULT_DETACH, history: bool = True
    ) -> AttachEnd:
        """Join a terminal (None: standard input and output) to the guest until detached; see `attach_console`."""
        from aiovmm.console.attach import attach_console
        from aiovmm.console.terminal import Terminal

        return await attach_console(self, terminal or Terminal(), detach=detach, history=history)
