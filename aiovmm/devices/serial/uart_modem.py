"""Modem control and status of a 16550A. Pure. Source: PC16550D data sheet, sections 8.7 and 8.8 (MCR and MSR)."""

from __future__ import annotations

from aiovmm.devices.serial.uart_registers import (
    MCR_DTR,
    MCR_LOOP,
    MCR_MASK,
    MCR_OUT1,
    MCR_OUT2,
    MCR_RTS,
    MSR_CTS,
    MSR_DCD,
    MSR_DSR,
    MSR_LINES,
    MSR_RI,
)

__all__ = ["Modem"]

_DELTA_SHIFT = 4
_DELTAS = 0x0B  # DCTS, DDSR, DDCD: any change
_TRAILING_EDGE = MSR_RI >> _DELTA_SHIFT


class Modem:
    """`control` is MCR, `inputs` what the other end drives (as MSR[7:4]), `deltas` MSR[3:0]."""

    def __init__(self, control: int, inputs: int, deltas: int) -> None:
        self.control, self.inputs, self.deltas = control, inputs, deltas

    @property
    def loopback(self) -> bool:
        """The status shows the control register's bits instead of the inputs."""
        return bool(self.control & MCR_LOOP)

    @property
    def out2(self) -> bool:
        """The output that opens the board's gate to the interrupt controller."""
        return bool(self.control & MCR_OUT2)

    @property
    def lines(self) -> int:
        """MSR[7:4]; in loopback they are RTS, DTR, OUT1 and OUT2."""
        if not self.loopback:
            return self.inputs
        mcr = self.control
        return (
            (MSR_CTS if mcr & MCR_RTS else 0)
            | (MSR_DSR if mcr & MCR_DTR else 0)
            | (MSR_RI if mcr & MCR_OUT1 else 0)
            | (MSR_DCD if mcr & MCR_OUT2 else 0)
        )

    def write_control(self, value: int) -> None:
        """Write MCR."""
        before = self.lines
        self.control = value & MCR_MASK
        self._note(before)

    def drive(self, inputs: int) -> None:
        """The other end changes its lines."""
        before = self.lines
        self.inputs = inputs & MSR_LINES
        self._note(before)

    def read_status(self) -> int:
        """Read MSR, which forgets the deltas."""
        value = self.lines | self.deltas
        self.deltas = 0
        return value

    def _note(self, before: int) -> None:
        changed = before ^ self.lines
        self.deltas |= changed >> _DELTA_SHIFT & _DELTAS
        if changed & before & MSR_RI:  # a ring counts when it ends
            self.deltas |= _TRAILING_EDGE
