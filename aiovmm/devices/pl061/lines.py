"""The PL061's eight general-purpose lines as a pure state machine: register accesses and levels of inputs go in, the interrupt's
level and what outputs drive come out.

Theory of operation. A line is an input or an output (GPIODIR). The data register is 256 words: bits 9 to 2 of the address
are the lines that an access is of. Of an input a rising or falling edge, or both, is remembered until it is cleared, or a
level counts while it lasts. A line's interrupt is let through by GPIOIE; GPIOINTR is the OR of them all. Lines that are
outputs give no interrupt.

Source: ARM PrimeCell General Purpose Input/Output (PL061) Technical Reference Manual, DDI 0190, chapters 2 and 3.
"""

from __future__ import annotations

import dataclasses

from aiovmm.runtime.dataclass import dataclass
from aiovmm.runtime.plain import Fields, State

__all__ = ["DATA_END", "GPIOIC", "GPIOIE", "GPIOMIS", "Pl061", "Pl061State"]

DATA_END = 0x400
GPIODIR, GPIOIS, GPIOIBE, GPIOIEV, GPIOIE, GPIORIS, GPIOMIS, GPIOIC, GPIOAFSEL = range(0x400, 0x424, 4)

_STORED = {
    GPIODIR: "direction",
    GPIOIS: "sense",
    GPIOIBE: "both",
    GPIOIEV: "event",
    GPIOIE: "enable",
    GPIOAFSEL: "function",
}
_LINES = 0xFF


@dataclass(frozen=True)
class Pl061State:
    """All that the block remembers, a bit a line; the defaults are its state after reset."""

    direction: int = 0  # 1: output
    sense: int = 0  # 1: a level, not an edge
    both: int = 0  # 1: both edges, whatever `event` has
    event: int = 0  # 1: rising or high
    enable: int = 0
    function: int = 0  # 1: hardware control, which nothing has here; stored
    outputs: int = 0  # as written
    inputs: int = 0  # as driven from outside
    edges: int = 0  # seen, and not cleared

    def save(self) -> State:
        """As plain data."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(Pl061State)}

    @classmethod
    def read(cls, state: State) -> Pl061State:
        """What `save` gave. Raises SnapshotError."""
        fields = Fields(state, "GPIO")
        read = cls(**{f.name: fields.number(f.name, 0, _LINES) for f in dataclasses.fields(Pl061State)})
        fields.end()
        return read


class Pl061:
    """Eight lines. Nothing here raises for any access."""

    direction: int
    sense: int
    both: int
    event: int
    enable: int
    function: int
    outputs: int
    inputs: int
    edges: int

    def __init__(self, state: Pl061State | None = None) -> None:
        self.restore(state or Pl061State())

    def snapshot(self) -> Pl061State:
        """The whole state."""
        return Pl061State(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Pl061State)})

    def restore(self, state: Pl061State) -> None:
        """Put `state` in force."""
        for f in dataclasses.fields(Pl061State):
            setattr(self, f.name, getattr(state, f.name))

    @property
    def data(self) -> int:
        """What all lines are at."""
        return self.inputs & ~self.direction | self.outputs & self.direction

    @property
    def ris(self) -> int:
        """GPIORIS: lines whose edge has been seen, or whose level is the one that counts."""
        at_level = self.sense & ~self.direction & ~(self.inputs ^ self.event)
        return (self.edges & ~self.sense | at_level) & _LINES

    @property
    def mis(self) -> int:
        """GPIOMIS: those that are let through."""
        return self.ris & self.enable

    @property
    def interrupt(self) -> bool:
        """The level of GPIOINTR."""
        return self.mis != 0

    def drive(self, inputs: int) -> None:
        """The levels of the inputs, from outside."""
        changed = (inputs ^ self.inputs) & ~self.direction
        counts = self.both | ~(inputs ^ self.event)  # the new level of one that has risen is 1
        self.edges |= changed & counts & ~self.sense & _LINES
        self.inputs = inputs & _LINES

    def read(self, offset: int) -> int:
        """Read the register at `offset`, a multiple of 4."""
        if offset < DATA_END:
            return self.data & offset >> 2
        if offset in _STORED:
            return int(getattr(self, _STORED[offset]))
        return {GPIORIS: self.ris, GPIOMIS: self.mis}.get(offset, 0)

    def write(self, offset: int, value: int, mask: int = _LINES) -> None:
        """Write those bits of the register at `offset` that `mask` has."""
        mask &= _LINES
        if offset < DATA_END:
            mask &= offset >> 2 & self.direction  # an input cannot be written
            self.outputs = self.outputs & ~mask | value & mask
        elif offset in _STORED:
            name = _STORED[offset]
            setattr(self, name, getattr(self, name) & ~mask | value & mask)
        elif offset == GPIOIC:
            self.edges &= ~value
