"""The registers of processors and memory modules, under whatever a driver does to them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.boot.x86_64.acpi.config import SlotPorts, UnitBits
from aiovmm.bus import Policy
from aiovmm.devices.hotplug.slots import SEGMENT_SIZE
from aiovmm.devices.hotplug.units import UnitFlag, UnitRegisters
from aiovmm.errors import SnapshotError

COUNT, PRESENT = 4, 2
UNITS = st.integers(0, COUNT - 1)
STEPS = st.one_of(
    st.tuples(st.sampled_from(["insert", "withdraw", "ask", "keep"]), UNITS),
    st.tuples(st.binary(min_size=1, max_size=4), UNITS),
)


def test_the_tables_and_the_device_mean_the_same() -> None:
    bits = {name: vars(kind)[name] for kind in (UnitBits,) for name in vars(kind) if name.isupper()}
    assert bits == {name: vars(UnitFlag)[name] for name in vars(UnitFlag) if name.isupper()}
    assert SlotPorts.SIZE == SEGMENT_SIZE


@given(st.lists(STEPS, max_size=40))
def test_a_driver_has_a_say_once_in_what_it_is_asked_for(steps: list[tuple[str | bytes, int]]) -> None:
    registers, told = UnitRegisters(COUNT, PRESENT), list[tuple[str, int]]()
    for name in ("taken", "refused", "kept", "eject", "again"):
        setattr(registers, f"on_{name}", lambda unit, name=name: told.append((name, unit)))
    asked: dict[int, str] = {}
    present = set(range(PRESENT))
    for what, unit in steps:
        if isinstance(what, str):
            getattr(registers, what)(unit)
            if what == "keep" and asked.get(unit) != "ask":
                continue
            asked.pop(unit, None)
            if what != "withdraw":
                asked[unit] = what
            (present.discard if what == "withdraw" else present.add)(unit)
        else:
            data, expected = what[: COUNT - unit], []
            before = len(told)
            registers.write(unit, data)
            for at, value in enumerate(data, unit):
                if (says := says_of(asked.get(at), value)) is not None:
                    if asked.pop(at) == "keep" and says == "again":
                        asked[at] = "again"
                    if says == "nothing":
                        continue
                    expected.append((says, at))
                    if says in ("refused", "eject"):
                        present.discard(at)
            assert told[before:] == expected
        assert {n for n, value in enumerate(registers.read(0, COUNT)) if value & 1} == present
        assert registers.present == len(present)
        for n in range(COUNT):
            assert registers.fast.policy[n] & Policy.SHADOW_READ
            assert bool(registers.fast.policy[n] & Policy.IGNORE_WRITE) is (n not in asked)
    copy = UnitRegisters(COUNT, 0)
    copy.load(registers.save())
    assert copy.save() == registers.save()
    coming = {unit for unit, what in asked.items() if what == "insert"}
    assert copy.read(0, COUNT) == bytes(n in present - coming for n in range(COUNT))
    assert copy.write(0, b"\xff" * COUNT) is None


def says_of(asked: str | None, value: int) -> str | None:
    if asked == "insert":
        return "taken" if value & 0x10 else "refused" if value & 0x20 else None
    if asked == "ask":
        return "eject" if value & 0x08 else "kept" if value & 0x40 else None
    if asked == "keep":
        return "again" if value & 0x08 else "nothing" if value & 0x40 else None
    if asked == "again":
        return "nothing" if value & 0x30 else None
    return None


def test_a_guest_fetches_what_it_is_told() -> None:
    registers = UnitRegisters(2, 1)
    registers.insert(1)
    assert registers.read(0, 2) == b"\x01\x03"
    registers.write(1, b"\x02")
    registers.ask(0)
    assert registers.read(0, 2) == b"\x05\x01"
    registers.write(0, b"\x04")
    assert registers.read(0, 2) == b"\x01\x01"


def test_one_that_is_to_stay_and_is_let_go_of_all_the_same_comes_again() -> None:
    registers = UnitRegisters(2, 2)
    again: list[int] = []
    registers.on_again = again.append
    registers.ask(1)
    registers.keep(1)
    registers.keep(0)
    assert registers.read(0, 2) == b"\x01\x01"
    registers.write(1, b"\x08")
    assert (again, registers.read(0, 2)) == ([1], b"\x01\x03")
    registers.write(1, b"\x12")
    registers.write(1, b"\x08")
    assert (again, registers.read(0, 2)) == ([1], b"\x01\x01")


@pytest.mark.parametrize("change", [{"present": b"\x08\0\0\0"}, {"present": b""}, {"more": 1}])
def test_damaged_state_is_refused(change: dict[str, object]) -> None:
    registers = UnitRegisters(COUNT, PRESENT)
    with pytest.raises(SnapshotError, match="units"):
        registers.load({**registers.save(), **change})
