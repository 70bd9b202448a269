"""A machine's IOMMU on PCI: which devices stand behind it, what they offer, and a fault from end to end. Without KVM."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from aiovmm.boot.acpi.viot import viot
from aiovmm.boot.pci import EndpointRange
from aiovmm.config import DiskConfig, FsConfig, NetConfig, PayloadConfig, PlatformConfig, RngConfig, VMConfig
from aiovmm.devices.virtio.iommu import IommuDevice
from aiovmm.errors import ConfigError, GuestFault, UsageError
from aiovmm.machine.devices import plug_configured
from aiovmm.machine.iommu import MachineIommu, machine_iommu, refuse_remote, wants_iommu
from aiovmm.machine.parts import MachineParts, PluggedDevice
from aiovmm.machine.pci import KvmPciServices, PciBuses
from aiovmm.memory import GuestMemory
from aiovmm.pci.driver import PciDriver
from aiovmm.pci.plan import Window, plan_segments
from aiovmm.pci.root import PciAddress
from aiovmm.pci.virtio import VirtioPci
from aiovmm.pci.virtio_driver import VirtioPciDriver
from aiovmm.testing.pci import ECAM_BASE, MESSAGES, MMIO32, RecordingServices
from aiovmm.virtqueue.driver import Arena, Descriptor
from aiovmm.virtqueue.features import ACCESS_PLATFORM
from aiovmm.virtqueue.status import Status
from tests.pci.echo import Echo, until

MIB = 1 << 20
PAYLOAD = PayloadConfig(Path("vmlinuz"))
BEHIND, BESIDE, IOMMU = 1, 2, 3  # slots


@dataclass
class Guest:
    """A machine with two echo devices and an IOMMU, and a driver for each."""

    memory: GuestMemory
    buses: PciBuses
    iommu: MachineIommu
    device: IommuDevice
    functions: dict[int, VirtioPci]
    drivers: dict[int, VirtioPciDriver]
    errors: list[Exception] = field(default_factory=list)

    async def ask(self, request: bytes) -> int:
        answer = await self.drivers[IOMMU].request(0, [request], [4])
        return answer[0]


@pytest.fixture
async def guest() -> AsyncIterator[Guest]:
    memory = GuestMemory.create([(0, 16 * MIB)])
    services = RecordingServices(memory)
    plans = plan_segments(1, ECAM_BASE, MMIO32, Window(4 << 30, 64 << 30))
    buses = PciBuses(plans, cast(KvmPciServices, services))
    device = IommuDevice(MESSAGES)
    iommu = MachineIommu(device, memory, ())
    made = Guest(memory, buses, iommu, device, {}, {})
    plugged = [PluggedDevice("a", Echo(), iommu=True), PluggedDevice("b", Echo()), PluggedDevice("iommu", device)]
    pci = PciDriver(services, plans[0].ecam_base)
    for slot, one in enumerate(plugged, 1):
        made.functions[slot] = buses.plug(one, lambda dev, exc: made.errors.append(exc), iommu)
        arena = Arena(0x1000 + slot * 2 * MIB, MIB)
        driver = VirtioPciDriver(services, memory, pci, slot, arena, first_vector=0x40 + 8 * slot)
        await driver.probe()
        await driver.start()
        made.drivers[slot] = driver
    yield made
    iommu.close()
    await buses.close()
    await device.close()
    services.close()
    memory.close()


async def test_only_the_device_behind_it_offers_access_platform(guest: Guest) -> None:
    assert guest.drivers[BEHIND].device_features & ACCESS_PLATFORM
    assert not guest.drivers[BESIDE].device_features & ACCESS_PLATFORM
    assert not guest.drivers[IOMMU].device_features & ACCESS_PLATFORM
    for slot in (BEHIND, BESIDE):
        assert await guest.drivers[slot].request(0, [b"abc"], [3]) == b"cba"


async def test_a_driver_that_does_not_take_access_platform_is_refused(guest: Guest) -> None:
    driver = guest.drivers[BEHIND]
    with pytest.raises(UsageError, match="refuses"):
        await driver.start(driver.device_features & ~ACCESS_PLATFORM)


async def test_the_viot_names_the_functions_by_the_ids_that_requests_use(guest: Guest) -> None:
    described = guest.iommu.describe()
    assert described is not None
    assert (described.segment, described.bdf) == (0, IOMMU << 3)
    assert [(e.segment, e.first_bdf, e.last_bdf) for e in described.endpoints] == [(0, BEHIND << 3, BEHIND << 3)]
    assert [e.endpoint_id for e in described.endpoints] == [BEHIND << 3]
    assert viot(described)[:4] == b"VIOT"
    assert await guest.ask(struct.pack("<B3xIII4x", 1, 0, BEHIND << 3, 1)) == 0
    assert await guest.ask(struct.pack("<B3xIII4x", 1, 0, BESIDE << 3, 1)) == 6  # NOENT


async def test_an_access_that_is_not_mapped_becomes_an_event_and_harms_nobody_else(guest: Guest) -> None:
    driver, other = guest.drivers[BEHIND], guest.drivers[BESIDE]
    events = guest.drivers[IOMMU].queues[1]
    events.add([], [24])
    events.kick()
    await driver.reset()
    assert await guest.ask(struct.pack("<B3xIII4x", 1, 0, BEHIND << 3, 0)) == 0
    assert await guest.ask(struct.pack("<B3xIQQQI", 3, 0, 0, 8 * MIB - 1, 0, 3)) == 0
    await driver.start()
    assert await driver.request(0, [b"abc"], [3]) == b"cba"
    guest.memory.write(9 * MIB, b"secret")
    q = driver.queues[0]
    q.add_raw([Descriptor(9 * MIB, 6, 1, 1), Descriptor(9 * MIB + 100, 6, 2)])
    q.kick()
    await driver.config_interrupt()
    assert driver.status & Status.NEEDS_RESET
    (used,) = await events.used()
    assert struct.unpack("<B3xII4xQ", used.data) == (2, 0x100, BEHIND << 3, 9 * MIB)
    assert isinstance(guest.errors[-1], GuestFault)
    assert guest.memory.read(9 * MIB, 200) == b"secret" + bytes(194)
    assert await other.request(0, [b"abc"], [3]) == b"cba"
    await driver.start()
    assert await driver.request(0, [b"abc"], [3]) == b"cba"
    assert guest.device.faults == 1


async def test_rings_outside_the_mappings_are_a_fault_as_well(guest: Guest) -> None:
    driver = guest.drivers[BEHIND]
    await driver.reset()
    assert await guest.ask(struct.pack("<B3xIII4x", 1, 0, BEHIND << 3, 0)) == 0
    await driver.start()
    assert driver.status & Status.NEEDS_RESET
    await until(lambda: guest.device.events_lost == 1)  # nobody has given it a buffer


async def test_the_end_of_the_machine_breaks_no_device(guest: Guest) -> None:
    driver = guest.drivers[BEHIND]
    await driver.reset()
    assert await guest.ask(struct.pack("<B3xIII4x", 1, 0, BEHIND << 3, 0)) == 0
    assert await guest.ask(struct.pack("<B3xIQQQI", 3, 0, 0, 16 * MIB - 1, 0, 3)) == 0
    await driver.start()
    guest.iommu.close()
    await guest.buses.close()
    await asyncio.sleep(0)
    assert guest.errors == []


# -- configuration


def parts(config: VMConfig) -> MachineParts:
    unused: Any = None
    return MachineParts(config, unused, unused, unused, unused, unused)


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (VMConfig(PAYLOAD), False),
        (VMConfig(PAYLOAD, rng=RngConfig(iommu=True)), True),
        (VMConfig(PAYLOAD, platform=PlatformConfig(num_pci_segments=2, iommu_segments=(1,))), True),
    ],
)
def test_there_is_one_if_somebody_asks_for_it(config: VMConfig, wanted: bool) -> None:
    made = parts(config)
    plug_configured(made)
    assert wants_iommu(made) == wanted
    assert [p.id for p in made.plugged] == (["rng", "iommu"] if wanted else ["rng"])
    memory = GuestMemory.create([(0, MIB)])
    iommu = machine_iommu(made, memory)
    assert (iommu is not None) == wanted
    if iommu is not None:
        assert iommu.covers(made.plugged[0]) == made.plugged[0].iommu
        assert not iommu.covers(made.plugged[1])
        assert iommu.covers(PluggedDevice("x", Echo(), 1)) == (config.platform.iommu_segments == (1,))
    memory.close()


@pytest.mark.parametrize("slot", [0, 1])
def test_slot_0_of_a_segment_without_a_bridge_is_behind_it(slot: int) -> None:
    platform = PlatformConfig(num_pci_segments=2, iommu_segments=(1,))
    made = parts(VMConfig(PAYLOAD, rng=RngConfig(pci_segment=1, pci_device_id=slot), platform=platform))
    plug_configured(made)
    memory = GuestMemory.create([(0, MIB)])
    iommu = machine_iommu(made, memory)
    assert iommu is not None
    iommu.plugged(made.plugged[-1], PciAddress(0, 2))
    described = iommu.describe()
    assert described is not None
    assert described.endpoints == (EndpointRange(1, slot << 3, 31 << 3),)
    memory.close()


@pytest.mark.parametrize("by_segment", [False, True])
@pytest.mark.parametrize("option", ["disk", "net", "fs"])
def test_a_back_end_in_another_process_cannot_be_behind_it(option: str, by_segment: bool) -> None:
    at: dict[str, Any] = {"socket": Path("s"), **({"pci_segment": 1} if by_segment else {"iommu": True})}
    config = VMConfig(PAYLOAD, platform=PlatformConfig(2, (1,) if by_segment else ()))
    match option:
        case "disk":
            config = replace(config, disks=(DiskConfig(vhost_user=True, **at),))
        case "net":
            config = replace(config, nets=(NetConfig(vhost_user=True, **at),))
        case _:
            config = replace(config, fs=(FsConfig(tag="t", **at),))
    with pytest.raises(ConfigError, match=rf"{option}\.iommu.*vhost-user"):
        refuse_remote(config)
