"""The i8042 keyboard controller with nothing plugged in, and port 0x61 beside it. Pure but for the thin shell at the end.

It is there for three things: a guest restarts by pulsing the reset line through it; a guest that polls its status must see
an idle controller (a floating 0xff reads as "busy" and costs a stock kernel seconds); and a guest that probes it must find at
once that it works and that neither port has a device.

A byte sent to a port is answered with 0xFE and the timeout bit, as the hardware does when nobody clocks it out, so a driver's
probe ends on an answer and not on its own time-out. The auxiliary port fails its interface test.

Sources: IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device Controller"; Linux
drivers/input/serio/i8042.c (6.1) for the order of the probe.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from aiovmm.bus import FastPage, Policy
from aiovmm.irq import IrqLine
from aiovmm.runtime.dataclass import dataclass, field_types
from aiovmm.runtime.plain import Fields, State, once

__all__ = ["I8042", "I8042Registers", "I8042State"]

_OUTPUT_FULL = 0x01
_SYSTEM = 0x04  # self-test passed
_LAST_WAS_COMMAND = 0x08
_UNLOCKED = 0x10
_FROM_AUX = 0x20
_TIMEOUT = 0x40

_KEYBOARD_IRQ = 0x01  # in the command byte
_SELF_TEST_PASSED = 0x55
_CLOCK_STUCK_LOW = 0x01
_NOT_SENT = 0xFE
_INPUT_PORT = 0x80  # keyboard not inhibited
_OUTPUT_PORT = 0x03  # reset line released, A20 on


_RAM = 31  # bytes


@dataclass(frozen=True)
class I8042State:
    """All that the controller remembers."""

    command_byte: int = 0x45  # translate, system flag, keyboard interrupt: what PC firmware leaves
    ram: bytes = bytes(_RAM)  # addresses 1 to 31 of its memory
    last_was_command: bool = False
    pending: int = 0  # command that waits for its data byte
    output: int | None = None  # the byte at port 0x60, and its status bits shifted left by 8
    port_b: int = 0  # the low four bits of port 0x61

    def save(self) -> State:
        """As plain data."""
        return {name: getattr(self, name) for name in field_types(I8042State)}

    @classmethod
    def read(cls, state: State) -> I8042State:
        """What `save` gave. Raises SnapshotError."""
        fields = Fields(state, "i8042")
        output = None if fields.absent("output") else fields.number("output", 0, 0xFFFF)
        read = cls(
            command_byte=fields.number("command_byte", 0, 0xFF),
            ram=fields.data("ram", _RAM),
            last_was_command=fields.flag("last_was_command"),
            pending=fields.number("pending", 0, 0xFF),
            output=output,
            port_b=fields.number("port_b", 0, 0x0F),
        )
        fields.end()
        return read


class I8042Registers:
    """Accesses by port. `write_*` return whether the guest asks for a reset."""

    def __init__(self) -> None:
        self.restore(I8042State())

    def snapshot(self) -> I8042State:
        """The whole state."""
        return I8042State(**{name: getattr(self, name) for name in field_types(I8042State)})

    def restore(self, state: I8042State) -> None:
        """Put `state` in force."""
        self.command_byte, self.ram = state.command_byte, state.ram
        self.last_was_command, self.pending = state.last_was_command, state.pending
        self.output, self.port_b = state.output, state.port_b

    @property
    def status(self) -> int:
        """Port 0x64: the input buffer is always empty, so nobody waits to write."""
        value = _UNLOCKED | self.command_byte & _SYSTEM
        if self.last_was_command:
            value |= _LAST_WAS_COMMAND
        if self.output is not None:
            value |= _OUTPUT_FULL | self.output >> 8
        return value

    @property
    def interrupt(self) -> bool:
        """Whether the byte that waits raises IRQ 1."""
        waiting = self.output is not None and not self.output >> 8 & _FROM_AUX
        return waiting and bool(self.command_byte & _KEYBOARD_IRQ)

    @property
    def system_control(self) -> int:
        """Port 0x61: no NMI pending, timer 2 has run out (so what waits for it does not), and what was written to bits 3:0."""
        return 0x20 | self.port_b

    def read_data(self) -> int:
        """Read port 0x60."""
        value = (self.output or 0) & 0xFF
        self.output = None
        return value

    def write_system_control(self, value: int) -> None:
        """Write port 0x61: speaker and timer gate, parity and channel check enables."""
        self.port_b = value & 0x0F

    def write_command(self, command: int) -> bool:
        """Write port 0x64."""
        self.last_was_command = True
        self.pending = 0
        if 0x60 <= command <= 0x7F or command in (0xD1, 0xD2, 0xD3, 0xD4):
            self.pending = command
        elif 0x20 <= command <= 0x3F:
            self._answer(self.command_byte if command == 0x20 else self.ram[command - 0x21])
        elif command >= 0xF0:
            return not command & 1  # pulses the output bits that are 0; bit 0 is the reset line
        else:
            self._test(command)
        return False

    def write_data(self, value: int) -> bool:
        """Write port 0x60: a command's data byte, or a byte for the keyboard."""
        self.last_was_command = False
        command, self.pending = self.pending, 0
        if command == 0x60:
            self.command_byte = value
        elif command & 0xE0 == 0x60:
            address = command - 0x61
            self.ram = self.ram[:address] + bytes([value]) + self.ram[address + 1 :]
        elif command == 0xD1:
            return not value & 1
        elif command in (0xD2, 0xD3):  # an AUX echo without the AUX status bit says that there is no such port
            self._answer(value)
        else:
            self._answer(_NOT_SENT, _TIMEOUT | (_FROM_AUX if command == 0xD4 else 0))
        return False

    def _test(self, command: int) -> None:
        match command:
            case 0xA7 | 0xA8:
                self._set(0x20, command == 0xA7)
            case 0xA9:
                self._answer(_CLOCK_STUCK_LOW)
            case 0xAA:
                self.command_byte |= _SYSTEM
                self._answer(_SELF_TEST_PASSED)
            case 0xAB:
                self._answer(0)
            case 0xAD | 0xAE:
                self._set(0x10, command == 0xAD)
            case 0xC0:
                self._answer(_INPUT_PORT)
            case 0xD0:
                self._answer(_OUTPUT_PORT)

    def _set(self, bit: int, on: bool) -> None:
        self.command_byte = self.command_byte | bit if on else self.command_byte & ~bit

    def _answer(self, value: int, status: int = 0) -> None:
        self.output = value | status << 8


class I8042:
    """A BusDevice of 5 bytes at port 0x60: data, system control, nothing, nothing, status and command.

    Status and system control are read from the shadow: only accesses that wait for the loop change them.
    `on_reset(reason)` is called when the guest pulses the reset line; `irq` is IRQ 1.
    """

    SIZE: ClassVar[int] = 5

    def __init__(self, on_reset: Callable[[str], None], irq: IrqLine | None = None) -> None:
        self.fast = FastPage(self.SIZE)
        nothing = Policy.SHADOW_READ | Policy.IGNORE_WRITE
        self.fast.policy[:] = bytes([Policy.SYNC, Policy.SHADOW_READ, nothing, nothing, Policy.SHADOW_READ])
        self._on_reset = on_reset
        self._irq = irq
        self._registers = I8042Registers()
        self._publish()

    def read(self, offset: int, size: int) -> bytes:
        """Ports 0x60 + offset and on; those in the middle read as ones."""
        value = bytes(self._read(i) for i in range(offset, offset + size))
        self._publish()
        return value

    def write(self, offset: int, data: bytes) -> None:
        """Ports 0x60 + offset and on."""
        registers, reset = self._registers, False
        before = registers.interrupt
        for i, value in enumerate(data, offset):
            if i == 0:
                reset |= registers.write_data(value)
            elif i == 1:
                registers.write_system_control(value)
            elif i == 4:
                reset |= registers.write_command(value)
        self._publish()
        if self._irq is not None and registers.interrupt and not before:
            self._irq.pulse()
        if reset:
            self._on_reset("keyboard controller")

    def snapshot(self) -> I8042State:
        """The state to give to `restore`."""
        return self._registers.snapshot()

    def restore(self, state: I8042State) -> None:
        """Go on from `state`, with the guest not running."""
        self._registers.restore(state)
        self._publish()

    def save(self) -> State:
        """The registers."""
        return self.snapshot().save()

    def load(self, state: State) -> None:
        """As `restore`. Raises SnapshotError."""
        self.restore(once(state, I8042State.read))

    def _read(self, offset: int) -> int:
        match offset:
            case 0:
                return self._registers.read_data()
            case 1:
                return self._registers.system_control
            case 4:
                return self._registers.status
        return 0xFF

    def _publish(self) -> None:
        self.fast.shadow[:] = bytes([0, self._registers.system_control, 0xFF, 0xFF, self._registers.status])
