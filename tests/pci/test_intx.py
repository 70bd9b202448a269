"""virtio functions with drivers that have no MSI-X (Linux: pci=nomsi): the pin, as the driver and the controller see it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aiovmm.memory import GuestMemory
from aiovmm.pci.config_space import ConfigSpace, Identity
from aiovmm.pci.driver import PciDriver
from aiovmm.pci.intx import InterruptPin
from aiovmm.pci.plan import SegmentPlan
from aiovmm.pci.segment import PciSegment
from aiovmm.pci.services import Place
from aiovmm.pci.virtio import VirtioPci
from aiovmm.pci.virtio_driver import VirtioPciDriver
from aiovmm.testing.pci import RecordedIntxLine, RecordingServices
from aiovmm.virtqueue.driver import Arena
from aiovmm.virtqueue.status import Status
from tests.pci.echo import Echo, until

COMMAND, STATUS, INTX_OFF, PENDING = 0x04, 0x06, 0x0400, 0x0008


@dataclass
class Guest:
    device: Echo
    driver: VirtioPciDriver
    pci: PciDriver
    pin: RecordedIntxLine
    transport: VirtioPci

    def handle(self) -> None:
        """The interrupt handler of Linux: ask the device, then end the interrupt, outside of the device's own call."""
        asyncio.get_running_loop().call_soon(self._handle)

    def _handle(self) -> None:
        self.driver.pin_interrupt()
        self.pin.end()

    @property
    def pending(self) -> bool:
        return bool(self.pci.read(self.driver.slot, STATUS, 2) & PENDING)


@pytest.fixture
async def guest(memory: GuestMemory, plan: SegmentPlan) -> AsyncIterator[Guest]:
    services = RecordingServices(memory)
    segment = PciSegment(plan, services)
    device = Echo()
    transport = VirtioPci(device, services)
    slot = segment.add(transport)
    pci = PciDriver(services, plan.ecam_base)
    driver = VirtioPciDriver(services, memory, pci, slot, Arena(0x1000, 8 << 20))
    await driver.probe()
    guest = Guest(device, driver, pci, services.pins[0], transport)
    guest.pin.handler = guest.handle
    yield guest
    await segment.close()
    assert guest.pin.closed
    services.close()


async def test_the_function_has_a_pin_that_firmware_has_routed(guest: Guest) -> None:
    assert guest.pci.read(guest.driver.slot, 0x3D, 1) == 1, "INTA"
    assert guest.pci.read(guest.driver.slot, 0x3C, 1) == guest.pin.gsi == guest.transport.interrupt_gsi


async def test_requests_go_round_without_msix(guest: Guest) -> None:
    await guest.driver.start(msix=False)
    for n in range(20):
        text = f"request {n}".encode()
        assert await guest.driver.request(0, [text], [len(text)]) == text[::-1]
    assert guest.pin.interrupts >= 20
    await until(lambda: not guest.pin.asserted and not guest.pending)


async def test_a_change_of_the_configuration_and_a_broken_device_interrupt(guest: Guest) -> None:
    await guest.driver.start(msix=False)
    guest.device.config_changed()
    await guest.driver.config_interrupt()
    guest.driver.queues[0].add([b"break"], [1])
    guest.driver.queues[0].kick()
    await guest.driver.config_interrupt()
    assert guest.driver.status & Status.NEEDS_RESET


async def test_what_is_not_quieted_interrupts_again(guest: Guest) -> None:
    await guest.driver.start(msix=False)
    guest.pin.handler = lambda: None
    guest.device.config_changed()
    assert guest.pin.asserted
    for n in range(2, 5):
        guest.pin.end()
        assert (guest.pin.asserted, guest.pin.interrupts) == (True, n)
    assert guest.driver.pin_interrupt()
    assert not guest.pin.asserted
    guest.pin.end()
    assert not guest.pin.asserted
    assert not guest.driver.pin_interrupt(), "somebody else's, on a shared pin"


async def test_the_disable_bit_keeps_the_pin_quiet_and_the_status_bit_true(guest: Guest) -> None:
    await guest.driver.start(msix=False)
    guest.pin.handler = lambda: None
    slot = guest.driver.slot
    command = guest.pci.read(slot, COMMAND, 2)
    await guest.pci.write(slot, COMMAND, command | INTX_OFF, 2)
    guest.device.config_changed()
    assert (guest.pin.asserted, guest.pending) == (False, True)
    await guest.pci.write(slot, COMMAND, command, 2)
    assert guest.pin.asserted
    await guest.pci.write(slot, COMMAND, command | INTX_OFF, 2)
    assert not guest.pin.asserted


async def test_msix_takes_the_place_of_the_pin(guest: Guest) -> None:
    await guest.driver.start(msix=False)
    guest.pin.handler = lambda: None
    guest.device.config_changed()
    await guest.pci.set_msix(guest.driver.function, enabled=True)
    assert (guest.pin.asserted, guest.pending) == (False, False)
    guest.device.config_changed()
    assert not guest.pin.asserted
    await guest.pci.set_msix(guest.driver.function, enabled=False)
    assert (guest.pin.asserted, guest.pending) == (True, True)


async def test_a_reset_releases_the_pin(guest: Guest) -> None:
    await guest.driver.start(msix=False)
    guest.pin.handler = lambda: None
    guest.device.config_changed()
    assert guest.pin.asserted
    await guest.driver.reset()
    assert (guest.pin.asserted, guest.pending) == (False, False)


class Wire(RuleBasedStateMachine):
    """Whatever happens in whatever order: status bit and pin follow from what is pending and what is disabled."""

    def __init__(self) -> None:
        super().__init__()
        self.services = RecordingServices(None)  # type: ignore[arg-type]  # nothing here reaches memory
        self.config = ConfigSpace(Identity(0x1AF4, 0x1044, 0xFF0000))
        self.pin = InterruptPin(self.config, self.services, Place())
        self.wire = self.services.pins[0]
        self.pending = False

    @rule(pending=st.booleans())
    def change(self, pending: bool) -> None:
        self.pending = pending
        self.pin.set_pending(pending)

    @rule(command=st.sampled_from([0, 7, INTX_OFF, INTX_OFF | 7]))
    def command(self, command: int) -> None:
        self.config.write(COMMAND, command.to_bytes(2, "little"))
        self.pin.command_written()

    @rule(value=st.integers(0, 0xFFFF))
    def write_status(self, value: int) -> None:
        self.config.write(STATUS, value.to_bytes(2, "little"))

    @rule()
    def end(self) -> None:
        self.wire.end()

    @invariant()
    def follows(self) -> None:
        assert bool(self.config.get(STATUS, 2) & PENDING) == self.pending
        assert self.wire.asserted == (self.pending and not self.config.get(COMMAND, 2) & INTX_OFF)


TestWire = Wire.TestCase
TestWire.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
