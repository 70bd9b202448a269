"""A host device on a guest's PCI bus: BARs, interrupts, resets, and its end."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from aiovmm.errors import UsageError
from aiovmm.memory import GuestMemory
from aiovmm.native.mapping import Mapping
from aiovmm.pci.plan import plan_segments
from aiovmm.pci.root import PciRoot
from aiovmm.runtime.worker import Worker
from aiovmm.testing.pci import ECAM_BASE
from aiovmm.vfio import Container, HostDevice, VfioFunction
from tests.limits import HANGS
from tests.vfio.guest import ADDRESS, BASE, ECAM, MEM32, MEM64, Guest, Services, Slot, plug
from tests.vfio.kernel import CONFIG, ERR, INTX, MSI, MSIX, PENDING, TABLE, FakeKernel, config_space


async def test_a_bar_is_a_memory_slot_where_the_guest_puts_it(guest: Guest) -> None:
    guest.place(BASE)
    assert [(s.address, s.size) for s in guest.services.slots] == [(BASE, 0x2000)]  # the MSI-X pages are not in it
    guest.place(BASE + (1 << 20))
    assert [s.address for s in guest.services.slots] == [BASE + (1 << 20)]
    guest.set_config(0x04, 2, 0)
    assert not guest.services.slots


async def test_slots_follow_in_the_machines_thread_and_the_guests_write_waits_for_them(guest: Guest) -> None:
    """KVM lets every vCPU leave the guest for a slot, which takes milliseconds."""
    guest.place(BASE)
    guest.services.worker, made = Worker("test"), []
    real = guest.services.memory_slot

    def noted(address: int, size: int, mapping: Mapping) -> Slot:
        made.append(threading.get_ident())
        return real(address, size, mapping)

    guest.services.memory_slot = noted  # type: ignore[method-assign]
    ecam = guest.root.segments[0].plan.ecam_base + (1 << 15)
    for base in (BASE + (1 << 20), BASE):
        pending = guest.services.write(ecam + 0x10, (base & 0xFFFFFFFF).to_bytes(4, "little"))
        assert pending is not None
        await pending
        assert [s.address for s in guest.services.slots] == [base]
    assert len(made) == 2
    assert threading.get_ident() not in made
    await guest.services.worker.aclose()
    guest.services.worker = None


async def test_the_host_is_asked_in_the_machines_thread_and_the_guests_write_waits(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupts of each kind, the command register, and the device's own registers: the host's kernel takes its time."""
    guest.place(BASE)
    guest.services.worker, asked = Worker("test"), []
    for name in ("ioctl", "pwrite"):
        real = getattr(guest.kernel, name)

        def noted(*args: Any, real: Callable[..., int] = real) -> int:
            asked.append(threading.get_ident())
            result = real(*args)
            time.sleep(0.01)  # what is not waited for is not done
            return result

        monkeypatch.setattr(guest.kernel, name, noted)

    async def write(address: int, value: int, size: int) -> None:
        pending = guest.services.write(address, value.to_bytes(size, "little"))
        assert pending is not None
        await pending

    irqs = guest.hardware.irqs
    for control, on, kind in ((0x72, 0x8000, MSIX), (0x52, 1, MSI)):
        await write(ECAM + control, on, 2)
        assert set(irqs) & {INTX, MSI, MSIX} == {kind}
        if kind == MSIX:
            entry = BASE + TABLE + 3 * 16
            guest.write(entry, (0xFEE0_0000).to_bytes(4, "little"))
            guest.write(entry + 8, (0x43).to_bytes(4, "little"))
            await write(entry + 12, 0, 4)
            assert set(irqs[MSIX]) == {3}
        await write(ECAM + control, 0, 2)
        assert set(irqs) & {INTX, MSI, MSIX} == {INTX}
    await write(ECAM + 0x04, 0x0006, 2)
    assert guest.command == 0x0006
    await write(ECAM + 0x88, 0x2810, 2)
    assert guest.hardware.bytes_at(CONFIG, 0x88, 2) == b"\x10\x28"
    guest.hardware.set_pin(True)
    await guest.function.close()
    assert not irqs
    assert len(asked) > 10
    assert threading.get_ident() not in asked
    await guest.services.worker.aclose()
    guest.services.worker = None


async def test_registers_that_are_trapped_are_reached_in_the_machines_thread_and_the_guest_waits(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that sleeps takes its time for the first of them."""
    guest.set_config(0x18, 4, MEM32.base + 0x100)
    guest.place(BASE)
    guest.services.worker, asked = Worker("test"), []
    for name in ("pread", "pwrite"):
        real = getattr(guest.kernel, name)

        def noted(*args: Any, real: Callable[..., Any] = real) -> Any:
            asked.append(threading.get_ident())
            time.sleep(0.01)
            return real(*args)

        monkeypatch.setattr(guest.kernel, name, noted)

    async def read(address: int, size: int) -> bytes:
        answer = guest.services.answer(address, size)
        assert not isinstance(answer, bytes)
        return await answer

    guest.hardware.put(2, 0x18, b"before")
    assert await read(MEM32.base + 0x118, 8) == b"before\0\0"
    written = guest.services.write(MEM32.base + 0x118, b"AFTER")
    assert written is not None
    assert await read(MEM32.base + 0x118, 8) == b"AFTERe\0\0", "in the order in which it was asked for"
    await written
    status = int.from_bytes(await read(ECAM + 6, 2), "little")  # the device's INTx bit, and ours
    guest.hardware.set_pin(True)
    assert int.from_bytes(await read(ECAM + 6, 2), "little") == status | 8
    assert len(asked) == 5
    assert threading.get_ident() not in asked
    await guest.services.worker.aclose()
    guest.services.worker = None


async def test_what_the_host_refuses_in_the_thread_is_reported_and_asked_for_no_more(guest: Guest) -> None:
    guest.hardware.vectors = 2
    guest.place(BASE)
    guest.services.worker = Worker("test")
    guest.set_config(0x72, 2, 0x8000)
    pending = guest.services.write(BASE + TABLE + 3 * 16 + 12, bytes(4))  # one of the vectors that were refused
    assert pending is not None
    await pending
    await guest.function.close()
    (error,) = guest.errors
    assert "the host has 2 vectors" in str(error)
    await guest.services.worker.aclose()
    guest.services.worker = None


async def test_a_slot_is_the_devices_own_registers(guest: Guest) -> None:
    guest.place(BASE)
    (slot,) = guest.services.slots
    guest.hardware.put(0, 0x10, b"register")
    area = guest.host.map(0, 0, 0x2000)
    assert area.mapping.host == slot.host
    assert area.mapping[0x10:0x18] == b"register"


async def test_a_bar_below_a_page_is_reached_an_access_at_a_time(guest: Guest) -> None:
    guest.set_config(0x18, 4, MEM32.base + 0x100)
    guest.set_config(0x04, 2, 2)
    guest.hardware.put(2, 8, b"\x11\x22\x33\x44")
    assert guest.services.read(MEM32.base + 0x108, 4) == b"\x11\x22\x33\x44"
    guest.write(MEM32.base + 0x110, b"\xaa\xbb")
    assert guest.hardware.bytes_at(2, 0x10, 2) == b"\xaa\xbb"


async def test_registers_beside_the_msix_table_are_the_devices(guest: Guest) -> None:
    guest.place(BASE)
    guest.hardware.put(0, TABLE + 0x800, b"\x55\x66\x77\x88")
    assert guest.services.read(BASE + TABLE + 0x800, 4) == b"\x55\x66\x77\x88"
    before = guest.hardware.bytes_at(0, TABLE, 0x80)
    guest.program(BASE, 0, masked=False)
    assert guest.hardware.bytes_at(0, TABLE, 0x80) == before


async def test_an_msix_vector_signals_the_guests_line(guest: Guest) -> None:
    guest.place(BASE)
    guest.set_config(0x72, 2, 0xC000)
    for vector in range(8):
        guest.program(BASE, vector, masked=True)
    assert guest.hardware.irqs[MSIX] == {}
    guest.program(BASE, 3, masked=False)
    guest.set_config(0x72, 2, 0x8000)
    guest.program(BASE, 5, masked=False)
    assert set(guest.hardware.irqs[MSIX]) == {3, 5}
    for vector in (3, 5):
        os.eventfd_write(guest.hardware.irqs[MSIX][vector], 1)
    for line in guest.services.lines:
        line.collect()
    assert sorted(m for line in guest.services.lines for m in line.messages) == [
        (0xFEE0_0000, 0x43),
        (0xFEE0_0000, 0x45),
    ]
    guest.set_config(0x72, 2, 0)
    assert MSIX not in guest.hardware.irqs


async def test_a_masked_vector_is_pending(guest: Guest) -> None:
    guest.place(BASE)
    guest.set_config(0x72, 2, 0x8000)
    guest.program(BASE, 2, masked=False)
    guest.program(BASE, 2, masked=True)
    os.eventfd_write(guest.hardware.irqs[MSIX][2], 1)
    assert guest.services.read(BASE + PENDING, 8) == (1 << 2).to_bytes(8, "little")
    guest.program(BASE, 2, masked=False)
    assert guest.services.read(BASE + PENDING, 8) == bytes(8)


async def test_msi_vectors_signal_lines(guest: Guest) -> None:
    guest.set_config(0x54, 4, 0xFEE0_0000)
    guest.set_config(0x5C, 2, 0x4060)
    guest.set_config(0x52, 2, 0x0011)  # two vectors
    assert set(guest.hardware.irqs[MSI]) == {0, 1}
    os.eventfd_write(guest.hardware.irqs[MSI][1], 1)
    for line in guest.services.lines:
        line.collect()
    assert [m for line in guest.services.lines for m in line.messages] == [(0xFEE0_0000, 0x4061)]
    guest.set_config(0x52, 2, 0x0001)
    assert set(guest.hardware.irqs[MSI]) == {0}
    guest.set_config(0x52, 2, 0)
    assert MSI not in guest.hardware.irqs


async def test_a_host_without_vectors_is_reported_and_the_guest_goes_on(guest: Guest) -> None:
    guest.hardware.vectors = 2
    guest.place(BASE)
    guest.set_config(0x72, 2, 0x8000)
    ((name, error),) = guest.errors
    assert name == ADDRESS
    assert "the host has 2 vectors" in str(error)


async def test_bus_mastering_and_intx_are_the_guests_and_decoding_is_not(guest: Guest) -> None:
    assert guest.command == 0x0002
    guest.set_config(0x04, 2, 0x0004)
    assert guest.command == 0x0006
    guest.set_config(0x04, 2, 0x0400)
    assert guest.command == 0x0402


async def test_what_is_the_devices_is_read_from_it_each_time(guest: Guest) -> None:
    guest.hardware.put(CONFIG, 0x8A, b"\x0f\x20")
    assert guest.config(0x8A, 2) == 0x200F
    guest.hardware.put(CONFIG, 0x8A, b"\x00\x00")
    assert guest.config(0x8A, 2) == 0
    guest.set_config(0x88, 2, 0x2810)
    assert guest.hardware.bytes_at(CONFIG, 0x88, 2) == b"\x10\x28"


async def test_a_function_level_reset_is_done_when_the_instruction_is(guest: Guest) -> None:
    before = guest.hardware.resets
    done = guest.set_config(0x88, 2, 0xA810)
    assert isinstance(done, asyncio.Future)
    await done
    assert guest.hardware.resets == before + 1


async def test_a_slot_that_kvm_refuses_is_reported(guest: Guest) -> None:
    guest.services.refuse_slots = True
    guest.place(BASE)
    assert guest.errors
    assert not guest.services.slots


async def test_the_end_quiets_and_resets_the_device(guest: Guest) -> None:
    guest.place(BASE)
    guest.set_config(0x72, 2, 0x8000)
    guest.program(BASE, 0, masked=False)
    resets = guest.hardware.resets
    await guest.function.close()
    await guest.function.close()
    assert guest.command == 0x0400
    assert not guest.hardware.irqs
    assert not guest.services.slots
    assert guest.hardware.resets == resets + 1


async def test_an_error_of_the_hardware_is_reported_once(guest: Guest) -> None:
    os.eventfd_write(guest.hardware.irqs[ERR][0], 1)
    await asyncio.wait_for(guest.heard.wait(), HANGS)
    os.eventfd_write(guest.hardware.irqs[ERR][0], 1)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    ((name, error),) = guest.errors
    assert name == ADDRESS
    assert "cannot be recovered from" in str(error)


async def test_a_reset_that_fails_at_the_end_is_reported(guest: Guest) -> None:
    guest.hardware.fail_reset = True
    await guest.function.close()
    ((_, error),) = guest.errors
    assert "resetting" in str(error)


async def test_a_second_machine_finds_the_device_again(guest: Guest, memory: GuestMemory) -> None:
    """As after the guest's reboot: the device stays open, everything else is new."""
    guest.place(BASE)
    await guest.root.close()
    services = Services(memory)
    function = VfioFunction(guest.host, services, lambda name, exc: None)
    await function.start()
    root = PciRoot(plan_segments(1, ECAM_BASE, MEM32, MEM64), services)
    root.add(function)
    again = Guest(guest.kernel, guest.hardware, guest.host, services, function, root)
    assert again.config(0x04, 2) == 0
    again.place(BASE)
    assert [s.address for s in services.slots] == [BASE]
    await root.close()
    assert guest.hardware.opened == 1


async def test_a_device_without_any_interrupt_is_refused(kernel: FakeKernel, memory: GuestMemory) -> None:
    kernel.add(ADDRESS, config=config_space(msix=0, msi=False), pins=0)
    host = HostDevice(kernel.path(ADDRESS), Container(kernel), kernel)
    host.open()
    with pytest.raises(UsageError, match="no MSI-X, no MSI, no INTx"):
        VfioFunction(host, Services(memory), lambda name, exc: None)
    host.close()


async def test_msix_works_where_the_kernel_maps_no_table_page(kernel: FakeKernel, memory: GuestMemory) -> None:
    guest = await plug(kernel, memory, kernel.add(ADDRESS, sparse=((0, 0x2000), (0x3000, 0x1000))))
    guest.place(BASE)
    assert [(s.address, s.size) for s in guest.services.slots] == [(BASE, 0x2000)]
    await guest.root.close()
    guest.host.close()


async def test_no_page_of_a_bar_that_is_excluded_is_mapped(kernel: FakeKernel, memory: GuestMemory) -> None:
    """Each access is made for the guest, and reaches the device all the same."""
    guest = await plug(kernel, memory, kernel.add(ADDRESS), trapped_bars=[0])
    guest.place(BASE)
    assert guest.services.slots == []
    guest.hardware.put(0, 0x10, b"\x11\x22\x33\x44")
    assert guest.services.read(BASE + 0x10, 4) == b"\x11\x22\x33\x44"
    guest.write(BASE + 0x14, b"\xaa\xbb")
    assert guest.hardware.bytes_at(0, 0x14, 2) == b"\xaa\xbb"
    await guest.root.close()
    guest.host.close()
