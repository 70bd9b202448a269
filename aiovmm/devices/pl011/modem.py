"""Modem control and status of a PL011. Pure. Source: DDI 0183, sections 3.3.3 (UARTFR), 3.3.8 (UARTCR) and 2.8 (interrupts)."""

from __future__ import annotations

from aiovmm.devices.pl011.registers import (
    CR_DTR,
    CR_LBE,
    CR_OUT1,
    CR_OUT2,
    CR_RTS,
    FR_CTS,
    FR_DCD,
    FR_DSR,
    FR_MODEM,
    FR_RI,
    INT_CTS,
    INT_DCD,
    INT_DSR,
    INT_RI,
)

__all__ = ["Modem"]

_LOOPED = ((CR_RTS, FR_CTS), (CR_DTR, FR_DSR), (CR_OUT1, FR_DCD), (CR_OUT2, FR_RI))
_INTERRUPTS = ((FR_CTS, INT_CTS), (FR_DSR, INT_DSR), (FR_DCD, INT_DCD), (FR_RI, INT_RI))


class Modem:
    """`control` is UARTCR, `inputs` what the other end drives, as in UARTFR."""

    def __init__(self, control: int, inputs: int) -> None:
        self.control, self.inputs = control, inputs

    @property
    def loopback(self) -> bool:
        """The status shows the outputs instead of the inputs."""
        return bool(self.control & CR_LBE)

    @property
    def lines(self) -> int:
        """The modem status bits of UARTFR."""
        return _translate(self.control, _LOOPED) if self.loopback else self.inputs

    def write_control(self, value: int) -> int:
        """Write UARTCR; the interrupts that come of it."""
        before = self.lines
        self.control = value
        return _translate(before ^ self.lines, _INTERRUPTS)

    def drive(self, inputs: int) -> int:
        """The other end changes its lines; the interrupts that come of it: any change gives one."""
        before = self.lines
        self.inputs = inputs & FR_MODEM
        return _translate(before ^ self.lines, _INTERRUPTS)


def _translate(bits: int, table: tuple[tuple[int, int], ...]) -> int:
    return sum(to for of, to in table if bits & of)
