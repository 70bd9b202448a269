"""The serial port of an arm64 machine: a PL011 on the bus, with a level-triggered interrupt.

Which accesses need not wait for the event loop, and why that is right
----------------------------------------------------------------------
The rule is the 16550A's (serial/port.py): a read answered from the shadow must show everything that the same vCPU did
before it and had to wait for, and must not claim what the register could never have shown.

- Reads have no side effect but UARTDR's, so all others are answered from the shadow. Linux reads UARTFR before each
  character and after each message: it finds the transmitter's FIFO empty, which it is. The receiver's flags are right
  before the interrupt that tells of them, and before the read of UARTDR that empties the FIFO is answered.
- A write to UARTDR is posted while the transmitter is on, unless it goes to the receiver (loopback), and lazily so unless
  the driver takes the transmit interrupt. It changes one thing that can be read: the transmit interrupt rises when the loop
  has seen it, as on hardware when it has left.
- What of UARTRIS and UARTMIS the guest has not been shown (see `interrupts`) it is not shown without the loop hearing of
  it. A transmit interrupt is noted as read, in order with the writes that made it; while one of the receiver is new the
  read waits, for the loop could not tell a note from one that was made before more came.
- A write of what a register has already changes nothing and is dropped: Linux's console sets UARTCR and puts it back around
  each message, and masks the transmit interrupt when it has written all. UARTICR shows 0, for writing 0 to it does nothing.
- All other writes wait for the loop, which puts the shadows and policies right before the vCPU goes on.

Nothing paces the interrupt, and nothing need: it is a level, which stands while its cause does. A guest in its handler is not
interrupted again, and one that leaves it while there is something to do is; so a burst costs one interrupt by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from aiovmm.bus import Policy
from aiovmm.devices.pl011 import registers as r
from aiovmm.devices.pl011.state import Pl011State
from aiovmm.devices.pl011.uart import Pl011
from aiovmm.devices.primecell import SIZE, fast_page, read_registers, set_policy, show_value, write_registers
from aiovmm.devices.serial.shell import UartPort
from aiovmm.devices.timer import CallLater
from aiovmm.irq import LevelLine
from aiovmm.native import lib

__all__ = ["Pl011Port"]

_PART, _REVISION = 0x011, 1  # r1p1: FIFOs of 16, which a driver knows by the revision
_REGISTERS = 0x4C
_INTERRUPTS = (r.UARTRIS, r.UARTMIS)

_SYNC = int(Policy.SYNC)
_POSTED = int(Policy.POSTED_WRITE)
_LAZY = int(Policy.POSTED_WRITE | Policy.LAZY_WRITE)
_CONTROL = int(Policy.SHADOW_READ | Policy.DROP_SAME)
_STATUS = int(Policy.SHADOW_READ | Policy.IGNORE_WRITE)
_NOTED = int(Policy.SHADOW_READ | Policy.NOTE_READ | Policy.IGNORE_WRITE)
_WRITTEN = int(Policy.SHADOW_READ)


class Pl011Port(UartPort[Pl011]):
    """A BusDevice of a page, with batches, runs and noted reads; and a ByteDevice for a console: see `serial.shell`.

    `state` is what the guest finds: after reset, unless it is given `HANDED_OVER` or a snapshot.
    """

    SIZE: ClassVar[int] = SIZE

    def __init__(
        self,
        irq: LevelLine,
        output: Callable[[bytes], None],
        *,
        call_later: CallLater | None = None,
        state: Pl011State | None = None,
    ) -> None:
        super().__init__(Pl011(state), fast_page(_PART, _REVISION, _REGISTERS), output, call_later)
        self._irq = irq
        self._level = False
        self._set_policies()
        self._publish_stored()
        self._publish()

    _read_state = Pl011State.read

    def snapshot(self) -> Pl011State:
        """The state to give to `restore`; output that was waiting for the end of the batch is handed on first."""
        self.end_of_batch()
        return self._uart.snapshot()

    def restore(self, state: Pl011State) -> None:
        """Go on from `state`, with the guest not running."""
        self._uart.restore(state)
        self._hold.end()
        self._publish_stored()
        self._settle()

    # -- the guest's side

    def read(self, offset: int, size: int) -> bytes:
        """Registers from `offset` on."""
        value = read_registers(self._uart.read, offset, size)
        self._settle()
        self._invite()
        return value

    def write(self, offset: int, data: bytes) -> None:
        """Registers from `offset` on. UARTDR alone may come posted, and waits for the end of the batch."""
        uart = self._uart
        if offset == r.UARTDR and len(data) <= 4 and uart.sends and not uart.loopback:
            self._transmit(data[:1])
            return
        write_registers(uart.write, offset, data)
        self._publish_stored()
        self._settle()
        self._invite()

    def write_many(self, offset: int, data: bytes, size: int = 1) -> None:
        """A run of writes of `size` bytes to one register."""
        if offset == r.UARTDR and self._uart.sends and not self._uart.loopback:
            self._transmit(data[::size])
            return
        for i in range(0, len(data), size):
            self.write(offset, data[i : i + size])

    def note_read(self, offset: int, data: bytes) -> None:
        """The guest was shown `data`, of interrupts. Settled at the end of the batch."""
        for register in _INTERRUPTS:
            if offset <= register < offset + len(data):
                self._uart.interrupts.shown(data[register - offset] & r.INT_TX)

    def end_of_batch(self) -> None:
        """Hand on the output and let the transmitter run empty, which may raise the interrupt."""
        uart = self._uart
        if uart.output:
            self._flush()
        uart.transmitted()
        self._publish_interrupts()
        self._interrupt()

    # -- inside

    def _interrupt(self, now: bool = False) -> None:
        level = self._uart.interrupt
        if level != self._level:
            self._level = level
            self._irq.set_level(level)

    def _set_policies(self) -> None:
        """Those that stay."""
        fixed = {r.UARTRSR: _WRITTEN, r.UARTFR: _STATUS, r.UARTICR: _CONTROL}
        reserved = dict.fromkeys(range(r.UARTRSR + 4, r.UARTFR, 4), _STATUS) | {r.UARTFR + 4: _STATUS}
        for offset, policy in {**fixed, **reserved, **dict.fromkeys(r.MASKS, _CONTROL)}.items():
            set_policy(self.fast, offset, policy)

    def _publish_stored(self) -> None:
        """What only writes change."""
        uart, fast = self._uart, self.fast
        for offset in r.MASKS:
            show_value(fast, offset, uart.peek(offset))
        self._publish_output()

    def _publish_output(self) -> None:
        uart = self._uart
        posted = _LAZY if self.lazily and not uart.peek(r.UARTIMSC) & r.INT_TX else _POSTED
        set_policy(self.fast, r.UARTDR, posted if uart.sends and not uart.loopback else _SYNC)

    def _publish(self) -> None:
        uart, fast = self._uart, self.fast
        show_value(fast, r.UARTRSR, uart.receiver.status)
        show_value(fast, r.UARTFR, uart.flags)
        self._publish_interrupts()

    def _publish_interrupts(self) -> None:
        """What posted writes and noted reads change too. In an order in which a vCPU that reads meanwhile is not shown more."""
        uart, fast = self._uart, self.fast
        unseen = uart.interrupts.unseen
        if unseen:
            self._set_status(_NOTED if unseen == r.INT_TX else _SYNC)
        show_value(fast, r.UARTRIS, uart.interrupts.raised)
        show_value(fast, r.UARTMIS, uart.mis)
        if not unseen:
            self._set_status(_STATUS)

    def _set_status(self, policy: int) -> None:
        """Between what is shown before and after it: other processors need not see stores in their order. It changes seldom."""
        if self.fast.policy[r.UARTRIS] == policy:
            return
        lib.avmm_fence()
        for register in _INTERRUPTS:
            set_policy(self.fast, register, policy)
        lib.avmm_fence()
