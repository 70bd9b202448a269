"""INTx of a host device, from the device's pin to a guest's I/O APIC and back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aiovmm.boot.pci import IntxWire
from aiovmm.devices.ioapic import IntxLine, IntxPins, IoApic
from aiovmm.machine.pci import describe_segments
from aiovmm.memory import GuestMemory
from aiovmm.vfio import Container, HostDevice, VfioFunction
from tests.vfio.guest import ADDRESS, BASE, ECAM, Guest, Messages, Services, plug
from tests.vfio.kernel import CONFIG, INTX, MSI, MSIX, FakeKernel, config_space

VECTOR = 0x31
LEVEL, MASKED = 1 << 15, 1 << 16
INTX_OFF = 0x0400


def program(ioapic: IoApic, pin: int, low: int) -> None:
    """A redirection entry, to processor 0."""
    for register, value in ((0x11 + 2 * pin, 0), (0x10 + 2 * pin, low)):
        ioapic.write(0x00, register.to_bytes(4, "little"))
        ioapic.write(0x10, value.to_bytes(4, "little"))


class Driver:
    """The guest's driver of the device: its interrupt open at the I/O APIC."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.ioapic = guest.services.ioapic
        gsi = guest.function.interrupt_gsi
        assert gsi is not None
        self.pin = gsi
        program(self.ioapic, self.pin, VECTOR | LEVEL)

    @property
    def interrupts(self) -> int:
        return self.guest.services.vectors.sent.count(VECTOR)

    async def interrupted(self, times: int) -> None:
        """All that was signalled has gone through the event loop; `times` interrupts have come by now."""
        await settled()
        assert self.interrupts == times

    def end(self) -> None:
        self.ioapic.eoi(VECTOR)


async def settled() -> None:
    """The event loop has looked at everything that was readable before."""
    first, second = os.pipe()
    heard = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(first, heard.set)
    try:
        for _ in range(2):
            heard.clear()
            os.write(second, b"x")
            await heard.wait()
            os.read(first, 1)
            await asyncio.sleep(0)
    finally:
        loop.remove_reader(first)
        os.close(first)
        os.close(second)


async def test_the_guest_sees_a_pin_and_where_it_goes(guest: Guest) -> None:
    assert guest.config(0x3D, 1) == 1
    assert guest.config(0x3C, 1) == guest.function.interrupt_gsi == 16
    guest.set_config(0x3C, 2, 0x020B)
    assert guest.config(0x3C, 2) == 0x010B, "the line is the guest's to note things in, the pin is not"


async def test_the_firmware_tables_tell_of_the_wire(guest: Guest) -> None:
    """The device is in slot 1; the host bridge beside it has no pin."""
    (segment,) = describe_segments(guest.root.segments)
    assert segment.intx == (IntxWire(1, 16),)


async def test_the_pin_is_the_first_whatever_it_is_on_the_host(kernel: FakeKernel, memory: GuestMemory) -> None:
    config = bytearray(config_space())
    config[0x3D] = 3
    guest = await plug(kernel, memory, kernel.add(ADDRESS, config=bytes(config)))
    assert guest.config(0x3D, 1) == 1
    await guest.root.close()
    guest.host.close()


async def test_a_device_whose_pin_the_kernel_does_not_give_has_none(kernel: FakeKernel, memory: GuestMemory) -> None:
    guest = await plug(kernel, memory, kernel.add(ADDRESS, pins=0))
    assert guest.config(0x3D, 1) == 0
    assert guest.function.interrupt_gsi is None
    assert guest.command & INTX_OFF
    assert INTX not in guest.hardware.irqs
    await guest.root.close()
    guest.host.close()


async def test_a_device_with_intx_alone_works(kernel: FakeKernel, memory: GuestMemory) -> None:
    guest = await plug(kernel, memory, kernel.add(ADDRESS, config=config_space(msix=0, msi=False)))
    driver = Driver(guest)
    guest.hardware.set_pin(True)
    await driver.interrupted(1)
    await guest.root.close()
    guest.host.close()
    assert not kernel.open_fds


async def test_an_interrupt_is_given_once_until_it_is_ended(guest: Guest) -> None:
    driver = Driver(guest)
    guest.hardware.set_pin(True)
    await driver.interrupted(1)
    assert guest.hardware.masked
    guest.hardware.set_pin(False)  # the handler has quieted it
    guest.hardware.set_pin(True)  # and it wants the next
    await driver.interrupted(1)
    driver.end()
    await driver.interrupted(2)
    guest.hardware.set_pin(False)
    driver.end()
    await driver.interrupted(2)
    assert not guest.hardware.masked


async def test_a_device_that_nobody_quiets_interrupts_again(guest: Guest) -> None:
    driver = Driver(guest)
    guest.hardware.set_pin(True)
    for times in range(1, 6):
        await driver.interrupted(times)
        driver.end()


async def test_what_comes_while_the_pin_is_masked_waits(guest: Guest) -> None:
    driver = Driver(guest)
    program(driver.ioapic, driver.pin, VECTOR | LEVEL | MASKED)
    guest.hardware.set_pin(True)
    await driver.interrupted(0)
    program(driver.ioapic, driver.pin, VECTOR | LEVEL)
    assert driver.interrupts == 1
    guest.hardware.set_pin(False)
    driver.end()
    await driver.interrupted(1)
    assert not guest.hardware.masked


async def test_the_guests_disable_bit(guest: Guest) -> None:
    driver = Driver(guest)
    guest.set_config(0x04, 2, INTX_OFF)
    guest.hardware.set_pin(True)
    await driver.interrupted(0)
    guest.set_config(0x04, 2, 0)
    await driver.interrupted(1)
    guest.set_config(0x04, 2, INTX_OFF)  # while it is asserted: released at once
    driver.end()
    await driver.interrupted(1)
    guest.set_config(0x04, 2, 0)
    await driver.interrupted(2)


async def test_a_signal_that_the_disable_bit_overtakes_is_not_lost(guest: Guest) -> None:
    driver = Driver(guest)
    guest.hardware.set_pin(True)  # signalled, and the loop has not seen it
    guest.set_config(0x04, 2, INTX_OFF)
    await driver.interrupted(0)
    guest.set_config(0x04, 2, 0)
    await driver.interrupted(1)


@pytest.mark.parametrize(("register", "value"), [(0x04, INTX_OFF), (0x52, 1)], ids=["disable bit", "MSI"])
async def test_what_waits_at_a_masked_pin_goes_with_the_wire(guest: Guest, register: int, value: int) -> None:
    driver = Driver(guest)
    program(driver.ioapic, driver.pin, VECTOR | LEVEL | MASKED)
    guest.hardware.set_pin(True)
    await driver.interrupted(0)
    guest.set_config(register, 2, value)
    program(driver.ioapic, driver.pin, VECTOR | LEVEL)
    await driver.interrupted(0)


async def test_the_status_register_tells_whether_the_device_asserts_it(guest: Guest) -> None:
    guest.set_config(0x04, 2, INTX_OFF)  # the bit is what it is whether or not it is passed on: PCI 3.0, 6.2.3
    for asserted in (True, False):
        guest.hardware.set_pin(asserted)
        assert bool(guest.config(0x06, 2) & 0x08) is asserted
        assert bool(guest.config(0x04, 4) >> 16 & 0x08) is asserted
        assert guest.config(0x06, 2) & 0x10, "the list of capabilities is ours"


async def test_a_driver_goes_to_messages_and_back(guest: Guest) -> None:
    driver = Driver(guest)
    guest.place(BASE)
    for control, kind in ((0x72, MSIX), (0x52, MSI), (0x72, MSIX)):
        assert set(guest.hardware.irqs) & {INTX, MSI, MSIX} == {INTX}
        guest.set_config(control, 2, 0x8000 if kind == MSIX else 1)
        assert set(guest.hardware.irqs) & {INTX, MSI, MSIX} == {kind}
        guest.set_config(control, 2, 0)
    before = driver.interrupts
    guest.hardware.set_pin(True)
    await driver.interrupted(before + 1)
    assert guest.errors == []


async def test_a_signal_under_way_when_messages_go_on_is_forgotten(guest: Guest) -> None:
    driver = Driver(guest)
    guest.hardware.set_pin(True)
    guest.set_config(0x52, 2, 1)
    await driver.interrupted(0)
    guest.hardware.set_pin(False)
    guest.set_config(0x52, 2, 0)
    await driver.interrupted(0)


async def test_messages_going_on_release_the_pin(guest: Guest) -> None:
    driver = Driver(guest)
    guest.hardware.set_pin(True)
    await driver.interrupted(1)
    guest.set_config(0x52, 2, 1)
    driver.end()  # of an interrupt whose source is gone: nothing to unmask, and no more comes
    await driver.interrupted(1)
    assert guest.errors == []


async def test_a_host_that_does_not_unmask_is_reported(guest: Guest) -> None:
    driver = Driver(guest)
    guest.hardware.set_pin(True)
    await driver.interrupted(1)
    guest.hardware.fail_unmask = True
    driver.end()
    ((name, error),) = guest.errors
    assert name == ADDRESS
    assert "unmasking INTX" in str(error)


async def test_the_end_takes_the_pin_away(guest: Guest) -> None:
    driver = Driver(guest)
    guest.hardware.set_pin(True)
    await driver.interrupted(1)
    await guest.function.close()
    assert INTX not in guest.hardware.irqs
    assert guest.command == INTX_OFF
    driver.end()
    await driver.interrupted(1)


async def test_nothing_is_held_when_the_host_refuses_the_interrupt(kernel: FakeKernel, memory: GuestMemory) -> None:
    hardware = kernel.add(ADDRESS)
    host = HostDevice(kernel.path(ADDRESS), Container(kernel), kernel)
    host.open()
    hardware.irqs[MSI] = {}  # the kernel will not have two kinds
    services = Services(memory)
    function = VfioFunction(host, services, lambda name, exc: None)
    with pytest.raises(Exception, match="setting up 1 INTX"):
        await function.start()
    await function.close()
    assert services.ioapic.snapshot().levels == 0
    host.close()
    assert not kernel.open_fds


async def test_config_writes_across_the_command_register(guest: Guest) -> None:
    """As one of four bytes from 0x02 or 0x04 would be."""
    guest.services.write(ECAM + 0x04, (INTX_OFF | 6).to_bytes(4, "little"))
    assert guest.command == INTX_OFF | 6
    assert guest.hardware.bytes_at(CONFIG, 6, 2) == config_space()[6:8]


# -- pins that are shared


class Wires(RuleBasedStateMachine):
    """Twelve functions on eight pins, against what a wired OR and level-triggered interrupts must do."""

    def __init__(self) -> None:
        super().__init__()
        self.messages = Messages()
        self.ioapic = IoApic(self.messages)
        self.pins = IntxPins(self.ioapic)
        self.ended: list[int] = []
        self.lines: list[IntxLine] = [self.pins.line(self._note(n), n + 1) for n in range(12)]
        self.asserted = [False] * 12
        for pin in range(16, 24):
            program(self.ioapic, pin, 0x40 + pin | LEVEL)
        self.in_service: set[int] = set()

    def _note(self, n: int) -> Callable[[], None]:
        return lambda: self.ended.append(n)

    def _delivered(self) -> None:
        for vector in self.messages.sent:
            assert vector - 0x40 not in self.in_service, "a second one before the first was ended"
            self.in_service.add(vector - 0x40)
        self.messages.sent.clear()

    @rule(n=st.integers(0, 11), asserted=st.booleans())
    def wire(self, n: int, asserted: bool) -> None:
        self.lines[n].set_level(asserted)
        self.asserted[n] = asserted
        self._delivered()

    @rule(pin=st.integers(16, 23))
    def end(self, pin: int) -> None:
        wires = [n for n in range(12) if self.lines[n].gsi == pin and self.asserted[n]]
        was = pin in self.in_service
        self.in_service.discard(pin)
        self.ioapic.eoi(0x40 + pin)
        assert self.ended == (wires if was else [])
        for n in self.ended:
            self.asserted[n] = False
        self.ended.clear()
        self._delivered()

    @invariant()
    def pins_are_as_their_wires(self) -> None:
        levels = self.ioapic.snapshot().levels
        for pin in range(16, 24):
            wired = any(a for a, line in zip(self.asserted, self.lines, strict=True) if line.gsi == pin)
            assert bool(levels >> pin & 1) is wired
            assert not wired or pin in self.in_service, "an asserted pin has been told of"


Wires.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestWires = Wires.TestCase


def test_a_slot_has_its_pin_whatever_is_in_others() -> None:
    pins = IntxPins(IoApic(Messages()))
    lines = [pins.line(lambda: None, slot) for slot in (*range(1, 10), 31, 4)]
    assert [line.gsi for line in lines] == [16, 17, 18, 19, 20, 21, 22, 23, 16, 22, 19]
    lines[3].close()
    lines[3].close()
    assert pins.line(lambda: None, 4).gsi == 19


def test_closing_a_shared_wire_leaves_the_others() -> None:
    ioapic = IoApic(Messages())
    pins = IntxPins(ioapic)
    lines = [pins.line(lambda: None, slot) for slot in range(1, 10)]
    lines[0].set_level(True)
    lines[8].set_level(True)
    lines[0].close()
    assert ioapic.snapshot().levels == 1 << 16
    lines[8].close()
    assert ioapic.snapshot().levels == 0
