"""Devices of both boards that are no more than registers: any access of any width has an answer as wide, and what is saved can be
loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiovmm.devices.acpi import AcpiControl, Ged, PmTimer
from aiovmm.devices.debug import DebugConsole, PostCode
from aiovmm.devices.hotplug.slots import SEGMENT_SIZE, SlotRegisters
from aiovmm.devices.hotplug.units import UnitRegisters
from aiovmm.devices.i8042 import I8042
from aiovmm.devices.ioapic import IoApic
from aiovmm.devices.pl011 import HANDED_OVER, Pl011Port
from aiovmm.devices.pl031.port import Pl031Rtc
from aiovmm.devices.pl061.port import Pl061Gpio
from aiovmm.devices.pvpanic import Pvpanic
from aiovmm.devices.rtc import Rtc
from aiovmm.devices.serial import SerialPort
from aiovmm.irq import RecordingLine
from tests.fuzz.source import Source

SEEDS = [b"", *(bytes([kind, *range(64)]) + b"\6\0\3\0\0\3" * 4 for kind in range(15)), b"\0\1\2\3" * 20]


class _Timer:
    def cancel(self) -> None:
        """It does not come."""


class _Sink:
    """Of an I/O APIC: takes all."""

    refused: Callable[[int], None]

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_args: None


class _Level(RecordingLine):
    def set_level(self, asserted: bool) -> None:
        """Noted by nobody."""


def _later(_seconds: float, _call: Callable[[], None]) -> _Timer:
    return _Timer()


class _Slots(SlotRegisters):
    """Of two segments."""

    SIZE = 2 * SEGMENT_SIZE

    def __init__(self) -> None:
        super().__init__(2)

    def happen(self, source: Source) -> None:
        """Something came, is to go, has gone, or is to stay."""
        what = source.one((self.added, self.ask, self.gone, self.forget))
        what(source.below(2), source.below(32))


class _Units(UnitRegisters):
    """Eight, of which three are there."""

    SIZE = 8

    def __init__(self) -> None:
        super().__init__(8, 3)

    def happen(self, source: Source) -> None:
        """One comes, has gone, is to go, or is to stay."""
        what = source.one((self.insert, self.withdraw, self.ask, self.keep))
        what(source.below(8))


_NOW = [0.0]
_KINDS: list[Callable[[], Any]] = [
    lambda: SerialPort(RecordingLine(), lambda _data: None),
    lambda: Rtc(lambda: _NOW[0], lambda _why: None, irq=RecordingLine(), call_later=_later),
    lambda: I8042(lambda _why: None, RecordingLine()),
    lambda: IoApic(_Sink()),  # type: ignore[arg-type]
    lambda: AcpiControl(lambda _why: None, lambda: None),
    lambda: PmTimer(lambda: int(_NOW[0] * 1e9)),
    lambda: Ged(_Level()),
    lambda: Pl031Rtc(_Level(), lambda: _NOW[0], _later),
    lambda: Pl061Gpio(_Level(), _later),
    lambda: Pl011Port(_Level(), lambda _data: None, call_later=_later, state=HANDED_OVER),
    _Slots,
    _Units,
    lambda: Pvpanic(lambda _event: None),
    lambda: DebugConsole(lambda _data: None),
    lambda: PostCode(lambda _code: None),
]


def _happen(device: Any, source: Source) -> None:
    """Time passes, and something comes from outside."""
    _NOW[0] += source.number(3)
    if hasattr(device, "happen"):
        device.happen(source)
    elif hasattr(device, "receive"):
        data = source.some(40)
        assert 0 <= device.receive(data) <= len(data)
    elif hasattr(device, "press_power_button"):
        device.press_power_button()


def run(data: bytes) -> None:
    source = Source(data)
    _NOW[0] = 1.7e9
    make = source.one(_KINDS)
    device = make()
    size = device.SIZE
    while source:
        what, offset = source.below(8), source.below(size)
        width = min(source.one((1, 2, 4, 8)), size - offset)
        if what < 3:
            device.write(offset, source.take(width).ljust(width, b"\0"))
        elif what < 6:
            answer = device.read(offset, width)
            assert isinstance(answer, bytes)
            assert len(answer) == width
        elif what == 6:
            _happen(device, source)
        elif hasattr(device, "save"):
            state, twin = device.save(), make()
            twin.load(state)
            assert twin.save() == state
    if hasattr(device, "close"):
        device.close()
