"""The devices of a PC that are not on PCI: saved at any moment and loaded anew they behave as those that were not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiovmm.devices.acpi import Ged, PmTimer
from aiovmm.devices.i8042 import I8042
from aiovmm.devices.ioapic import IoApic
from aiovmm.devices.pl011 import HANDED_OVER, Pl011Port
from aiovmm.devices.pl031 import Pl031Rtc
from aiovmm.devices.pl061 import Pl061Gpio
from aiovmm.devices.rtc import Rtc
from aiovmm.devices.serial import SerialPort
from aiovmm.errors import SnapshotError
from tests.saving.text import damaged, through_text


class Clock:
    """Time that stands still until it is moved, and calls what is due then."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.25
        self.calls: list[Call] = []

    def call_later(self, delay: float, callback: Callable[[], None]) -> Call:
        call = Call(self.now + delay, callback)
        self.calls.append(call)
        return call

    def move(self, seconds: float) -> None:
        end = self.now + seconds
        for _ in range(50):  # a fast periodic interrupt has very many
            due = [call for call in self.calls if not call.done and call.at <= end]
            if not due:
                break
            first = min(due, key=lambda call: call.at)
            first.done = True
            self.now = max(self.now, first.at)
            first.callback()
        self.now = max(self.now, end)


class Call:
    def __init__(self, at: float, callback: Callable[[], None]) -> None:
        self.at, self.callback, self.done = at, callback, False

    def cancel(self) -> None:
        self.done = True


class Saved(Protocol):
    def read(self, offset: int, size: int) -> Any: ...
    def write(self, offset: int, data: bytes) -> Any: ...
    def save(self) -> Any: ...
    def load(self, state: Any) -> Any: ...


class Board:
    """One device with all that is around it: `log` is what it did."""

    def __init__(self, kind: str) -> None:
        self.log: list[object] = []
        self.clock = Clock()
        self.device: Any = getattr(self, f"_{kind}")()

    # what a device may be given

    def pulse(self) -> None:
        self.log.append("pulse")

    def set_level(self, asserted: bool) -> None:
        self.log.append(asserted)

    def signal(self, address: int, data: int) -> bool:
        self.log.append((address, data))
        return data & 3 != 3

    refused: Callable[[int, int], None] | None = None

    def route(self, pin: int, address: int, data: int | None) -> None:
        return None

    def ended_in_vain(self) -> None:
        self.log.append("in vain")

    def _ged(self) -> Ged:
        return Ged(self)

    def _pm_timer(self) -> PmTimer:
        return PmTimer(lambda: round(self.clock.now * 1e9))

    def _i8042(self) -> I8042:
        return I8042(self.log.append, self)

    def _rtc(self) -> Rtc:
        clock = self.clock
        return Rtc(lambda: clock.now, self.log.append, irq=self, call_later=clock.call_later)

    def _serial(self) -> SerialPort:
        return SerialPort(self, self.log.append, call_later=self.clock.call_later)

    def _ioapic(self) -> IoApic:
        return IoApic(self)

    def _pl011(self) -> Pl011Port:
        return Pl011Port(self, self.log.append, call_later=self.clock.call_later, state=HANDED_OVER)

    def _pl031(self) -> Pl031Rtc:
        return Pl031Rtc(self, lambda: self.clock.now, self.clock.call_later)

    def _pl061(self) -> Pl061Gpio:
        return Pl061Gpio(self, self.clock.call_later)

    def take(self, step: tuple[str, int, int]) -> object:
        kind, a, b = step
        device = self.device
        if device.SIZE == 4096 and kind in ("read", "write"):
            return self._primecell(kind, a, b)
        if kind == "read":
            return device.read(a % device.SIZE, 1)
        if kind == "write":
            offset = a % device.SIZE
            device.write(offset, bytes([b]))
            if isinstance(device, SerialPort):
                device.end_of_batch()
        elif kind == "word" and isinstance(device, IoApic):
            device.write(0, bytes([a]))
            device.write(0x10, b.to_bytes(4, "little"))
            return device.read(0x10, 4)
        elif kind == "time":
            self.clock.move(b / 64)
        else:
            return self._event(a, b)
        return None

    def _primecell(self, kind: str, a: int, b: int) -> object:
        """A register of 32 bits."""
        offset = (0x400 if isinstance(self.device, Pl061Gpio) and a & 16 else 0) + 4 * (a % 20)
        if kind == "read":
            return self.device.read(offset, 4)
        value = b | (b << 24 if a & 32 else 0)
        self.device.write(offset, value.to_bytes(4, "little"))
        if isinstance(self.device, Pl011Port):
            self.device.end_of_batch()
        return None

    def _event(self, a: int, b: int) -> object:
        device = self.device
        if isinstance(device, Pl061Gpio):
            device.press_power_button()
        if isinstance(device, SerialPort | Pl011Port):
            return device.receive(bytes([b & 0xFF] * (a % 20)))
        if isinstance(device, Ged):
            device.notify(1 << a % 4)
        elif isinstance(device, IoApic):
            if b & 1:
                device.set_level(a % 24, bool(b & 2))
            elif b & 4:
                device.eoi(b >> 8 & 0xFF)
            else:
                device.pulse(a % 24)
        return None


STEP = st.one_of(
    st.tuples(st.sampled_from(["read", "write"]), st.integers(0, 7) | st.integers(0, 63), st.integers(0, 255)),
    st.tuples(st.just("word"), st.integers(0, 0x40), st.one_of(st.integers(0, 2**32 - 1), st.integers(0x8000, 0x80FF))),
    st.tuples(st.sampled_from(["event", "time"]), st.integers(0, 31), st.integers(0, 2**16 - 1)),
)
_LOOSE = {("serial", "event"), ("pl011", "event"), ("pm_timer", "read")}
"""How much input is taken at once depends on when it was first kept back; a fraction of a tick of the timer is lost."""
_WAITS_ANEW = {"pl061"}
"""What a key waits for begins anew, so no time has passed of that when it is saved."""

KINDS = ["pl011", "pl031", "pl061", "ged", "pm_timer", "i8042", "rtc", "serial", "ioapic"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@example(before=[("write", 2, 1)], after=[])  # nothing is kept back, so nothing is to be released
@example(
    before=[("event", 0, 0), ("read", 8, 0), ("time", 0, 160)], after=[("time", 0, 160)]
)  # half of its wait is over
@given(before=st.lists(STEP, max_size=30), after=st.lists(STEP, max_size=20))
def test_it_goes_on_as_if_nothing_had_been(kind: str, before: list[Any], after: list[Any]) -> None:
    old = Board(kind)
    for step in before:
        if kind not in _WAITS_ANEW or step[0] != "time":
            old.take(step)
    state = through_text(old.device.save())
    new = Board(kind)
    new.clock.now = old.clock.now
    new.device.load(state)
    assert through_text(new.device.save()) == state
    if hasattr(new.device, "unsuspend"):
        new.device.unsuspend()
    old.log.clear()
    new.log.clear()
    for step in after:
        answers = [board.take(step) for board in (old, new)]
        if (kind, step[0]) not in _LOOSE:
            assert answers[0] == answers[1]
    if kind in ("serial", "pl011"):
        for board in (old, new):
            board.clock.move(5)
            board.device.end_of_batch()
    assert old.log == new.log
    ends = [through_text(board.device.save()) for board in (old, new)]
    if kind == "pm_timer":
        assert (ends[1]["count"] - ends[0]["count"]) & 0xFFFFFFFF in (0, 1, 0xFFFFFFFF)
    else:
        assert ends[0] == ends[1]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@given(st.data())
def test_a_damaged_state_is_refused_or_is_a_guests_own_trouble(kind: str, data: st.DataObject) -> None:
    old = Board(kind)
    for step in data.draw(st.lists(STEP, max_size=15)):
        old.take(step)
    good = through_text(old.device.save())
    state = data.draw(damaged(good))
    new = Board(kind)
    before = through_text(new.device.save())
    try:
        new.device.load(state)
    except SnapshotError:
        assert through_text(new.device.save()) == before, "nothing is changed by what is refused"
        return
    for step in data.draw(st.lists(STEP, max_size=15)):
        new.take(step)
    through_text(new.device.save())


def test_input_that_came_before_a_port_was_loaded_is_not_lost() -> None:
    """A console is joined to the port when it is made."""
    old, new = Board("serial"), Board("serial")
    old.take(("write", 1, 1))
    assert old.device.receive(b"a") == 1
    state = through_text(old.device.save())
    assert new.device.receive(b"b") == 1
    new.device.load(state)
    new.device.unsuspend()
    assert new.log == [], "nothing interrupts before the processors are there"
    assert new.device.read(0, 1) == b"a"
    assert new.device.read(0, 1) == b"b"


def test_an_alarm_is_given_after_the_processors_are_there() -> None:
    old, new = Board("rtc"), Board("rtc")
    for index, value in ((0x0B, 0x12), (0x0A, 0x26)):  # update interrupts, 24 hours
        old.device.write(0, bytes([index]))
        old.device.write(1, bytes([value]))
    state = through_text(old.device.save())
    new.clock.now = old.clock.now + 3
    new.device.load(state)
    new.clock.move(0)
    assert new.log == []
    new.device.unsuspend()
    new.clock.move(0)
    assert new.log == ["pulse"]
