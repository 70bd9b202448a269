"""A machine's PCI as a whole."""

from __future__ import annotations

import pytest

from aiovmm.bus import Space
from aiovmm.errors import UsageError
from aiovmm.pci.config_space import ConfigSpace, Identity
from aiovmm.pci.driver import PciDriver
from aiovmm.pci.function import PciFunction
from aiovmm.pci.plan import Window, plan_segments
from aiovmm.pci.root import PciAddress, PciRoot
from aiovmm.testing.pci import ECAM_BASE, MMIO32, RecordingServices

PLANS = plan_segments(2, ECAM_BASE, MMIO32, Window(4 << 30, 64 << 30))


def card() -> PciFunction:
    return PciFunction("card", ConfigSpace(Identity(0x1234, 0x5678, 0xFF0000)))


async def test_a_bare_segment_has_slot_0_for_who_asks_for_it(services: RecordingServices) -> None:
    root = PciRoot(PLANS, services, bare=(1,))
    assert [str(root.add(card(), 1, slot)) for slot in (None, 0)] == ["0001:00:01.0", "0001:00:00.0"]
    assert [f.vendor for f in await PciDriver(services, PLANS[1].ecam_base).enumerate()] == [0x1234, 0x1234]
    with pytest.raises(UsageError, match="slot 0 has the host bridge"):
        root.add(card(), 0, 0)
    await root.close()


async def test_devices_go_where_the_configuration_says(services: RecordingServices) -> None:
    root = PciRoot(PLANS, services)
    root.add_config_ports()
    where = [root.add(card()), root.add(card(), segment=1), root.add(card(), segment=1, slot=9)]
    assert [str(a) for a in where] == ["0000:00:01.0", "0001:00:01.0", "0001:00:09.0"]
    assert where[2].requester_id == 9 << 3
    for plan, slots in zip(PLANS, ([0, 1], [0, 1, 9]), strict=True):
        assert [f.slot for f in await PciDriver(services, plan.ecam_base).enumerate()] == slots
    assert [f.slot for f in await PciDriver(services, None).enumerate()] == [0, 1], "the ports reach segment 0 only"
    await root.remove(where[2])
    assert root.function(where[2]) is None
    await root.close()
    await root.close()
    assert services.bus.ranges() == []


async def test_a_segment_that_is_not_there_is_named(services: RecordingServices) -> None:
    root = PciRoot(PLANS, services)
    root.add_config_ports()
    with pytest.raises(UsageError, match="no PCI segment 2: this machine has 2"):
        root.add(card(), segment=2)
    with pytest.raises(UsageError, match="nothing in slot 4"):
        await root.remove(PciAddress(0, 4))
    await root.close()


def test_port_cf9_reaches_the_machine(services: RecordingServices) -> None:
    resets: list[bool] = []
    PciRoot(PLANS, services).add_config_ports(lambda: resets.append(True))
    services.write(0xCF9, b"\x06", Space.PIO)
    assert resets == [True]


async def test_a_function_knows_its_place_once_it_is_plugged_in(services: RecordingServices) -> None:
    """Its lines were made before that, and an interrupt controller may want to know who sends."""
    root, function = PciRoot(PLANS, services), card()
    line = services.msi_line("a line", function.place)
    root.add(function, segment=1, slot=9)
    assert (line.place.segment, line.place.requester_id) == (1, 9 << 3)
    await root.close()
