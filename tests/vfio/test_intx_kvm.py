"""INTx of a host device with KVM's local APIC between it and a guest: the end of an interrupt comes by KVM's exit."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from aiovmm.devices.ioapic import IntxPins, IoApic
from aiovmm.errors import KvmError
from aiovmm.machine.pci import KvmPciServices
from aiovmm.machine.x86_64.interrupts import IoApicSink, message_for_kvm
from aiovmm.runtime.worker import Worker
from aiovmm.vfio import Container, HostDevice, VfioFunction
from tests.guests.machine import Machine
from tests.vfio.guest import ADDRESS
from tests.vfio.kernel import FakeKernel
from tests.vfio.test_intx import LEVEL, MASKED, program

pytestmark = pytest.mark.kvm
VECTOR = 0x40  # that tests/guests/interrupts.S counts


def create_task(coro: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(coro, name=name)


async def test_a_guest_takes_and_ends_the_interrupts_of_a_pin(kernel: FakeKernel) -> None:
    try:
        machine = Machine("interrupts")
    except KvmError as exc:
        pytest.skip(f"/dev/kvm cannot be used: {exc}")
    hardware = kernel.add(ADDRESS)
    device = HostDevice(kernel.path(ADDRESS), Container(kernel), kernel)
    device.open()
    errors: list[Exception] = []
    async with machine as m:
        worker = Worker("kvm calls")
        ioapic = IoApic(IoApicSink(m.vm, worker.submit))
        m.on_eoi = ioapic.eoi
        pins = IntxPins(ioapic)
        services = KvmPciServices(
            m.vm, m.bus, m.memory, create_task, worker, message_for_kvm, lambda ended, at: pins.line(ended, at.slot)
        )
        function = VfioFunction(device, services, lambda name, exc: errors.append(exc))
        await function.start()
        pin = function.interrupt_gsi
        assert pin is not None
        program(ioapic, pin, VECTOR | LEVEL)
        m.start()
        await m.until(lambda: b"R" in m.written)
        for n in range(1, 20):
            hardware.set_pin(True)
            await m.until(lambda n=n: m.counter >= n)  # type: ignore[misc]
            hardware.set_pin(False)
            await m.until(lambda: not hardware.masked)
        taken = m.counter  # a handler may have ended one before its pin was quiet, and got it again
        assert taken >= 19

        program(ioapic, pin, VECTOR | LEVEL | MASKED)
        hardware.set_pin(True)
        await m.until(lambda: bool(ioapic.snapshot().levels >> pin & 1))
        assert m.counter == taken
        program(ioapic, pin, VECTOR | LEVEL)
        await m.counts_on(3)  # for as long as nobody quiets it
        hardware.set_pin(False)
        await m.until(lambda: not hardware.masked and not ioapic.snapshot().levels)
        await function.close()
        await worker.aclose()
        assert errors == []
    device.close()
