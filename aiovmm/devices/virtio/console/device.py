"""The console device, VIRTIO 1.2 §5.3, with one port: bytes from the guest, bytes to it, the terminal's size.

Output: chains are copied out and returned at once, and their bytes handed on in large pieces; see `output`.

Input: the guest's buffers are the only buffer. `receive` copies straight into as many of them as it needs; when there are too few
it takes less, and the writable callback is called when the guest has offered others. So what the guest has not read stays with
the writer, across resets and reboots.

Nothing is put into them while the driver may be setting the device up. Linux sets DRIVER_OK, offers its buffers and only then
joins the port to a terminal (virtio_console.c, add_port), and until it has, its interrupt handler throws away what it finds. What
tells that it has is the first output: none comes before the port is joined. A guest that is to print nothing gets its input
when it has left the receive queue alone for `QUIET`.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable

from aiovmm.devices.hold import InputHold
from aiovmm.devices.timer import CallLater
from aiovmm.devices.virtio.console.input import InputFiller
from aiovmm.devices.virtio.console.output import CHAIN_MAX, OutputCopier
from aiovmm.runtime.plain import Fields, State
from aiovmm.virtqueue import Queue, VirtioDevice

__all__ = ["F_EMERG_WRITE", "F_SIZE", "PRINTED", "QUIET", "ConsoleDevice"]

F_SIZE = 1 << 0
F_EMERG_WRITE = 1 << 2

_CONFIG = struct.Struct("<HHII")  # struct virtio_console_config, §5.3.4: cols, rows, max_nr_ports, emerg_wr
_EMERG_WR = 8

QUIET = 1.0
"""Seconds. The driver's way from its last buffer to a terminal leads through the kernel's lock of all consoles, which one that is
slow may hold. Nobody waits for it at a console that prints."""

PRINTED = 0.02
"""Seconds from the first output: another processor may print between the two steps by which Linux joins the port."""


class ConsoleDevice(VirtioDevice):
    """A ByteDevice and ResizableDevice for an `aiovmm.console.Console`; `output` gets what the guest prints, must take it all
    and return at once. `size` is columns and rows until `resize` is called. With `call_later` input waits for the driver."""

    device_id = 3
    name = "console"
    features = F_SIZE | F_EMERG_WRITE
    queue_sizes = (128, 128)  # receiveq, transmitq; Linux fills the first with a page for each entry

    def __init__(
        self,
        output: Callable[[bytes], None],
        *,
        size: tuple[int, int] = (80, 24),
        call_later: CallLater | None = None,
    ) -> None:
        self._output = output
        self._hold = InputHold(call_later, QUIET)
        self._size = self._told = size  # the terminal's now, and when the driver was last told
        self._kept = True  # input is kept from the driver when `run` goes on
        self._half = 0  # bytes of the next chain that were printed before `run` goes on
        self._writable: Callable[[], None] | None = None
        self._refused = False  # `receive` took less than it was given
        self._input: InputFiller | None = None  # of a live device

    # -- the host's side

    def receive(self, data: bytes) -> int:
        """Give the guest bytes to read; how many of them it had room for."""
        taken = self._input.fill(data) if self._input is not None and not self._hold.active else 0
        self._refused = taken < len(data)
        return taken

    def set_writable_callback(self, callback: Callable[[], None] | None) -> None:
        """`callback` is called when there is room after `receive` took less than it was given."""
        self._writable = callback

    def resize(self, cols: int, rows: int) -> None:
        """The terminal's size, which the guest is told of by a configuration interrupt."""
        size = min(max(cols, 0), 0xFFFF), min(max(rows, 0), 0xFFFF)
        if size != self._size:
            self._size = self._told = size
            self.config_changed()

    # -- the guest's side

    def read_config(self, offset: int, size: int) -> bytes:
        """cols and rows; there is one port, and emerg_wr reads as 0."""
        return _CONFIG.pack(*self._size, 1, 0)[offset : offset + size].ljust(size, b"\0")

    def write_config(self, offset: int, data: bytes) -> None:
        """A write of emerg_wr prints its low byte, at any time in the device's life (§5.3.6.1)."""
        if offset <= _EMERG_WR < offset + len(data):
            self._output(data[_EMERG_WR - offset :][:1])

    async def run(self, queues: list[Queue], features: int) -> None:
        """Serve both directions. Raises GuestError for a malformed chain."""
        receiveq, transmitq = queues
        if features & F_SIZE and not (self.resumed and self._told == self._size):
            self.config_changed()  # Linux reads the size only when it is told of a change
        self._told = self._size
        self._input = InputFiller(receiveq, self._room)
        output = OutputCopier(transmitq, self._printed, self._half if self.resumed else 0)
        if self._kept or not self.resumed:
            self._hold.begin()
            self._hold.wait(self._invite)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._input.serve(), name="console input")
                group.create_task(output.serve(), name="console output")
        finally:
            self._input = None
            self._half = output.put_back() if self.suspending else 0
            self._kept = self._hold.active
            self._hold.end()

    def reset(self) -> None:
        """What was printed of a chain is the last driver's."""
        self._half = 0

    def save(self) -> State:
        """The size that the driver knows, whether it is still being set up, and how far a long chain is printed. Input that it
        has not taken is the writer's."""
        state: State = {"size": list(self._told), "held": self._kept}
        return state | {"half": self._half} if self._half else state

    def load(self, state: State) -> None:
        """Raises SnapshotError. A size that is another now the driver is told of."""
        fields = Fields(state, self.name)
        cols, rows = fields.numbers("size", 2, 0, 0xFFFF)
        kept = fields.flag("held")
        half = fields.number("half", 1, CHAIN_MAX) if "half" in fields else 0
        fields.end()
        self._told, self._kept, self._half = (cols, rows), kept, half

    def _printed(self, data: bytes) -> None:
        self._output(data)
        self._hold.end_in(PRINTED, self._invite)

    def _room(self) -> None:
        """The driver has offered buffers."""
        self._hold.touched()
        self._invite()

    def _invite(self) -> None:
        if self._refused and self._writable is not None:
            self._refused = False
            self._writable()
