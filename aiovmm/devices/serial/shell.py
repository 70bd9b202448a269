"""What a serial port is besides its registers: byte streams on the far side, back-pressure, and input kept for later.

`UartPort` is generic over the register machine behind it (`Uart`), which is pure. A port of one kind adds its face to the bus:
where its registers lie, which accesses need not wait (`_publish`), what a batch ends with, and what its interrupt is
(`_interrupt`). The 16550A's is in `port`, the PL011's in `aiovmm.devices.pl011`.

A driver that sets a 16550A up clears the receiver's FIFO, and then reads it once or twice unasked ("for luck", as Linux says, in
autoconfig and in startup). So bytes that a clear has taken unread come again, and nothing comes after a clear until the driver
enables the receive interrupt, or, for one that polls, has left the port alone for `QUIET`. The line status tells nothing: a
console that prints reads it as one that waits for input does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from aiovmm.bus import FastPage
from aiovmm.devices.hold import InputHold
from aiovmm.devices.timer import CallLater
from aiovmm.runtime.plain import Fields, State, once

__all__ = ["QUIET", "Uart", "UartPort"]

QUIET = 1.0
"""Seconds. A set-up takes some tens of accesses, a few of which come to the loop; the slowest host is to be quicker than this.
With a quarter of it a byte was lost in a nested host among a hundred busy processes. Who enables interrupts does not wait."""

ANSWERS = 32
"""Batches of output after input that wake the loop at once: an echo, or what a command answers, for somebody waits for it. What a
guest prints unasked, as at boot, need not (bus.Policy.LAZY_WRITE)."""

_OUTPUT_LIMIT = 64 * 1024
"""Bytes gathered before they are handed on within a batch: memory stays bounded against a guest that only prints."""


class Receiver(Protocol):
    """The FIFO of what has come."""

    def clear(self) -> bytes:
        """Drop all; what of it was data from the line."""


class Uart(Protocol):
    """A UART as a pure state machine, as its port sees it. `output` is what the guest has sent, for the owner to take away;
    `dropped` what it has cleared unread from the line, to come again; `listening` whether its driver takes input by interrupt."""

    output: bytearray
    dropped: bytearray
    listening: bool

    @property
    def room(self) -> int:
        """Bytes that `receive` takes now; 0 while the line is disconnected."""

    @property
    def drained(self) -> bool:
        """The driver has read so much of what came that it waits for more."""

    def receive(self, data: bytes) -> int:
        """Bytes arrive; returns how many were taken, at most `room`."""

    @property
    def receiver(self) -> Receiver:
        """What has come and is not read yet."""

    def receive_dropped(self) -> None:
        """What `dropped` has arrives again, as far as there is room."""

    def receive_break(self) -> bool:
        """A break arrives. False when there is no room for it."""

    def transmit(self, data: bytes) -> None:
        """A run of writes to the data register."""

    def transmitted(self) -> None:
        """All that was written has left."""

    def take_cleared(self) -> bool:
        """Whether the driver has begun to set the receiver up since the last call."""


UartT = TypeVar("UartT", bound=Uart)


class UartPort(Generic[UartT]):
    """A ByteDevice for a console; with a face to the bus it is a BusDevice.

    `output` gets what the guest sends, once a drain of the exit ring. It must take it all and return at once.
    `call_later` lets the port keep input back while the guest's driver sets the port up.
    """

    def __init__(
        self, uart: UartT, fast: FastPage, output: Callable[[bytes], None], call_later: CallLater | None
    ) -> None:
        self.fast = fast
        self._uart = uart
        self._output = output
        self._hold = InputHold(call_later, QUIET)
        self._waiting = False  # `receive` took less than it was given
        self._writable: Callable[[], None] | None = None
        self._answers = 0  # batches of output that somebody awaits

    # -- the host's side

    def receive(self, data: bytes) -> int:
        """Give the guest bytes to read; returns how many were taken (16 at most, 1 without FIFO, 0 in loopback, and while
        the guest's driver sets the port up)."""
        held = self._hold.active or bool(self._uart.dropped)
        if held and data:
            self._hold.wait(self._offer)
        taken = 0 if held else self._uart.receive(data)
        self._waiting = taken < len(data)
        if taken:
            self._await_answer()
        self._settle(now=True)
        return taken

    def set_writable_callback(self, callback: Callable[[], None] | None) -> None:
        """`callback` is called when the guest has read all, after `receive` took less than it was given."""
        self._writable = callback

    def send_break(self) -> bool:
        """A break on the line, which Linux takes for SysRq. False when the guest has no room for it now."""
        sent = self._uart.receive_break()
        self._settle(now=True)
        return sent

    def close(self) -> None:
        """Forget the timers, and set none again. Idempotent."""
        self._hold.close()

    # -- its state

    def save(self) -> State:
        """The registers, whether input is kept from the driver, and whether there is any. May interrupt, so the controller's
        state comes after it."""
        uart = self.snapshot().save()
        kept = self._hold.active and (self._hold.waits or self._waiting or bool(self._uart.dropped))
        return {"uart": uart, "held": self._hold.active, "kept": kept}

    def load(self, state: State) -> None:
        """As `restore`; what has come for this port since it was made comes behind what it had, and not before
        `unsuspend`. Raises SnapshotError."""
        fields = Fields(state, "serial port")
        uart = once(fields.state("uart"), self._read_state)
        held, kept = fields.flag("held"), fields.flag("kept")
        fields.end()
        came = self._uart.dropped + self._uart.receiver.clear()
        self.restore(uart)
        self._uart.dropped += came
        if held or came:
            self._hold.begin()
        self._waiting = self._waiting or kept

    def unsuspend(self) -> None:
        """After `load`: the vCPUs can take interrupts, and input comes when the driver takes it."""
        self._keep_for_a_while()

    # -- what a port of one kind adds

    _read_state: Callable[[State], Any]
    """Its registers from what was saved of them. Raises SnapshotError."""

    def snapshot(self) -> Any:
        """The registers, to be given to `restore`."""
        raise NotImplementedError

    def restore(self, state: Any) -> None:
        """Go on from what `snapshot` gave, with the guest not running."""
        raise NotImplementedError

    def _publish(self) -> None:
        """Put shadows and policies right after an access, or after something has come."""
        raise NotImplementedError

    def _publish_output(self) -> None:
        """How a write to the data register goes: `lazily`, unless its driver waits for the interrupt."""
        raise NotImplementedError

    def _interrupt(self, now: bool = False) -> None:
        """Tell the line. `now`: something has happened that the guest does not expect."""
        raise NotImplementedError

    # -- inside

    @property
    def lazily(self) -> bool:
        """Whether nobody awaits output."""
        return self._answers == 0

    def _await_answer(self) -> None:
        before, self._answers = self._answers, ANSWERS
        if before == 0:
            self._publish_output()

    def _transmit(self, data: bytes) -> None:
        self._uart.transmit(data)
        if len(self._uart.output) >= _OUTPUT_LIMIT:
            self._flush()

    def _flush(self) -> None:
        output = self._uart.output
        data = bytes(output)
        output.clear()  # before the call, which may raise
        if self._answers:
            self._answers -= 1
            if self._answers == 0:
                self._publish_output()
        self._output(data)

    def _settle(self, now: bool = False) -> None:
        """Shadows first, then the interrupt: what the guest's handler reads is never older than what called it."""
        self._publish()
        self._interrupt(now)

    def _invite(self) -> None:
        """The driver has accessed the port: is there input for it, and does it take any?"""
        uart, hold = self._uart, self._hold
        hold.touched()
        if uart.take_cleared():
            hold.begin()
        if uart.listening:
            hold.end()
        if not hold.active:
            self._offer()
        else:
            self._keep_for_a_while()

    def _keep_for_a_while(self) -> None:
        """If there is input that is kept from the driver."""
        if self._hold.active and (self._uart.dropped or self._waiting):
            self._hold.wait(self._offer)

    def _offer(self) -> None:
        """Give what was dropped unread; ask for more input when there is some and the guest has read what there was."""
        uart = self._uart
        if uart.dropped and uart.room:
            uart.receive_dropped()
            self._settle(now=True)
        if self._waiting and self._writable is not None and uart.room and uart.drained:
            self._waiting = False
            self._writable()
