"""The registers that the tables name do in the device what the tables say."""

from __future__ import annotations

from aiovmm.boot.x86_64.acpi import RESET_VALUE, S5_VALUE, GedEvent
from aiovmm.devices import acpi as device
from aiovmm.irq import RecordingLine


class Machine:
    def __init__(self) -> None:
        self.ends: list[str] = []
        self.control = device.AcpiControl(lambda reason: self.ends.append("reset"), lambda: self.ends.append("off"))


def test_the_reset_value_resets_and_the_s5_value_turns_off() -> None:
    machine = Machine()
    machine.control.write(0, bytes([RESET_VALUE]))
    machine.control.write(0, bytes([S5_VALUE]))
    assert machine.ends == ["reset", "off"]


def test_clearing_the_wake_status_does_nothing() -> None:
    """Linux writes WAK_STS to SLEEP_STATUS_REG, the same port, before it sleeps (acpi_hw_extended_sleep)."""
    machine = Machine()
    machine.control.write(0, b"\x80")
    assert machine.ends == []


def test_both_name_the_same_events() -> None:
    ours, theirs = (
        {name: vars(kind)[name] for name in vars(kind) if name.isupper()} for kind in (GedEvent, device.GedEvent)
    )
    assert ours == theirs != {}


def test_the_level_holds_until_the_one_read_of_evt() -> None:
    line = RecordingLine()
    ged = device.Ged(line)
    ged.press_power_button()
    ged.notify(device.GedEvent.PCI)
    assert line.level
    assert ged.read(0, 1) == bytes([GedEvent.POWER_BUTTON | GedEvent.PCI])
    assert not line.level
    assert ged.read(0, 1) == b"\0"


def test_the_registers_are_as_wide_as_the_tables_say() -> None:
    assert (device.AcpiControl.SIZE, device.Ged.SIZE, device.PmTimer.SIZE) == (1, 1, 4)
    timer = device.PmTimer(iter([0, 1_000_000_000_000]).__next__)
    assert int.from_bytes(timer.read(0, 4), "little") == 3_579_545_000, "32 bits: TMR_VAL_EXT is set"
