"""The serial port of a PC: a 16550A on the bus, with an interrupt line.

Which accesses need not wait for the event loop, and why that is right
----------------------------------------------------------------------
The rule: a read answered from the shadow must show everything that the same vCPU did before it and had to wait for, and must
not claim what the register could never have shown. Between vCPUs the guest's own lock around the port decides, which counts on
the exit loop to hand out what several vCPUs posted in the order in which they did.

- Writes that change what other registers mean or show (IER, FCR, LCR, MCR, the divisor) wait for the loop, which puts the
  shadows and policies right before the vCPU goes on. A write to IER, LCR or MCR of what it has already changes nothing and is
  dropped: Linux turns interrupts off and on around each message, most of which come before any has been turned on.
- A write to THR is posted, unless it is the divisor or goes to the receiver (DLAB, loopback), and lazily so unless the driver
  waits for the THRE interrupt, or input has come, which somebody awaits an answer to: a boot's messages then wake the loop some
  hundred times a second at most. It changes two things that can be read. LSR: nothing, for the transmitter is always empty. IIR:
  the THRE interrupt falls and comes back; until the loop has seen the write, the guest reads either of the two, as it would on
  hardware while a byte is being sent.
- IIR is answered from the shadow, and the loop told what was shown, for reading the THRE interrupt withdraws it. Until it has
  been told, further reads may show that interrupt again: a driver then finds THR empty, which it is. The withdrawal goes by
  what the guest saw and not by what stands now, so an interrupt that it has not seen is never lost.
- LSR is shown while it has no error bits, MSR while it has no deltas: then reading them has no side effect. Its DR bit is
  raised before the interrupt that tells of it, and falls before the read of RBR that empties the FIFO is answered.
- SCR is a byte of memory: latched into the shadow when written, and never written there by the loop in answer to that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from aiovmm.bus import FastPage, Policy
from aiovmm.devices.serial.pacing import InterruptPacer
from aiovmm.devices.serial.shell import UartPort
from aiovmm.devices.serial.uart import Uart16550, UartState
from aiovmm.devices.serial.uart_registers import IER_TX_EMPTY, LSR_ERRORS, LSR_FIFO_ERROR, REGISTERS
from aiovmm.devices.timer import CallLater
from aiovmm.irq import IrqLine
from aiovmm.native import lib

__all__ = ["SerialPort"]

_LSR_EVENTS = LSR_ERRORS | LSR_FIFO_ERROR
_THR, _IER, _IIR, _LCR, _MCR, _LSR, _MSR, _SCR = range(REGISTERS)
_SYNC = int(Policy.SYNC)
_POSTED = int(Policy.POSTED_WRITE)
_LAZY = int(Policy.POSTED_WRITE | Policy.LAZY_WRITE)
_CONTROL = int(Policy.SHADOW_READ | Policy.DROP_SAME)
_NOTED = int(Policy.SHADOW_READ | Policy.NOTE_READ)
_READ_ONLY = int(Policy.IGNORE_WRITE)
_STATUS = int(Policy.SHADOW_READ | Policy.IGNORE_WRITE)
_MEMORY = int(Policy.SHADOW_READ | Policy.POSTED_WRITE | Policy.LATCH_WRITE)


class SerialPort(UartPort[Uart16550]):
    """A BusDevice of 8 bytes, with batches, runs and noted reads; and a ByteDevice for a console: see `shell`.

    `call_later` also lets the port hold back interrupts that the guest does not need; see `pacing`.
    """

    SIZE: ClassVar[int] = REGISTERS

    def __init__(
        self,
        irq: IrqLine,
        output: Callable[[bytes], None],
        *,
        call_later: CallLater | None = None,
    ) -> None:
        super().__init__(Uart16550(), FastPage(REGISTERS), output, call_later)
        self._pacer = InterruptPacer(irq, call_later)
        self._publish()

    _read_state = UartState.read

    def snapshot(self) -> UartState:
        """The state to give to `restore`; output that was waiting for the end of the batch is handed on first."""
        self.end_of_batch()
        self._pacer.give()
        return self._uart.snapshot()

    def restore(self, state: UartState) -> None:
        """Go on from `state`, with the guest not running."""
        self._uart.restore(state)
        self._hold.end()
        self._pacer.reset()
        self.fast.shadow[_SCR] = state.scr
        self._publish()

    def close(self) -> None:
        """Forget the timers, and set none again. Idempotent."""
        super().close()
        self._pacer.close()

    # -- the guest's side

    def read(self, offset: int, size: int) -> bytes:
        """Registers from `offset` on, one after the other, as the bus splits a wide access."""
        value = bytes(self._uart.read(i) for i in range(offset, offset + size))
        self._settle()
        self._invite()
        return value

    def write(self, offset: int, data: bytes) -> None:
        """Registers from `offset` on. THR alone may come posted, and waits for the end of the batch."""
        uart = self._uart
        if offset == _THR and len(data) == 1 and not uart.dlab and not uart.loopback:
            self._transmit(data)
            return
        for i, value in enumerate(data, offset):
            uart.write(i, value)
        if len(data) > 1 and offset + len(data) > _SCR:  # not latched: only an access of all latched bytes is
            self.fast.shadow[_SCR] = uart.scr
        if offset == _SCR:
            return
        self._settle()
        self._invite()

    def write_many(self, offset: int, data: bytes, size: int = 1) -> None:
        """A run of writes of `size` bytes to one register."""
        if offset == _THR and size == 1 and not self._uart.dlab and not self._uart.loopback:
            self._transmit(data)
            return
        for i in range(0, len(data), size):
            self.write(offset, data[i : i + size])

    def note_read(self, offset: int, data: bytes) -> None:
        """The guest was shown `data`; only IIR has a side effect. Settled at the end of the batch."""
        if offset <= _IIR < offset + len(data):
            shown = data[_IIR - offset]
            self._uart.note_iir(shown)
            self._pacer.shown(shown)

    def end_of_batch(self) -> None:
        """Hand on the output and let the transmitter run empty, which may raise the interrupt."""
        uart = self._uart
        if uart.output:
            self._flush()
        uart.transmitted()
        self.fast.shadow[_IIR] = uart.iir  # all that posted writes and noted reads change
        self._interrupt()

    # -- inside

    def _interrupt(self, now: bool = False) -> None:
        uart = self._uart
        self._pacer.update(uart.interrupt, uart.take_edge(), uart.take_tx_edge(), now=now)

    def _publish(self) -> None:
        uart, policy, shadow = self._uart, self.fast.policy, self.fast.shadow
        divisor = uart.dlab
        self._publish_output()
        shadow[_IER] = uart.ier
        policy[_IER] = _SYNC if divisor else _CONTROL
        shadow[_IIR] = uart.iir
        policy[_IIR] = _NOTED
        shadow[_LCR] = uart.lcr
        shadow[_MCR] = uart.modem.control
        policy[_LCR] = policy[_MCR] = _CONTROL
        policy[_SCR] = _MEMORY
        lsr = uart.lsr
        self._show(_LSR, lsr & ~_LSR_EVENTS, not lsr & _LSR_EVENTS)
        self._show(_MSR, uart.modem.lines, not uart.modem.deltas)

    def _publish_output(self) -> None:
        uart = self._uart
        # A driver that takes no interrupt polls LSR, which never lets it wait.
        posted = _LAZY if self.lazily and not uart.ier & IER_TX_EMPTY else _POSTED
        self.fast.policy[_THR] = _SYNC if uart.dlab or uart.loopback else posted

    def _show(self, register: int, value: int, whole: bool) -> None:
        """A read-only register. `whole`: `value` is all of it, so a read has no side effect and need not wait.

        The order keeps a vCPU that reads meanwhile from taking a new value without the bits that only the loop can give.
        The fence makes it the order in which other processors see the two; policies change seldom.
        """
        policy, shadow = self.fast.policy, self.fast.shadow
        if whole:
            shadow[register] = value
            if policy[register] != _STATUS:
                lib.avmm_fence()
                policy[register] = _STATUS
        else:
            if policy[register] != _READ_ONLY:
                policy[register] = _READ_ONLY
                lib.avmm_fence()
            shadow[register] = value
