"""A machine with one PCI segment and no KVM."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aiovmm.bus import Range, Space
from aiovmm.memory import GuestMemory
from aiovmm.pci.config_ports import CONFIG_PORTS, CONFIG_PORTS_SIZE, ConfigPorts
from aiovmm.pci.plan import SegmentPlan, Window, plan_segments
from aiovmm.pci.segment import PciSegment
from aiovmm.testing.pci import ECAM_BASE, MMIO32, RecordingServices

RAM_SIZE = 16 << 20
MMIO64 = Window(4 << 30, 64 << 30)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    ram = GuestMemory.create([(0, RAM_SIZE)])
    yield ram
    ram.close()


@pytest.fixture
def services(memory: GuestMemory) -> Iterator[RecordingServices]:
    recorder = RecordingServices(memory)
    yield recorder
    recorder.close()


@pytest.fixture
def plan() -> SegmentPlan:
    return plan_segments(1, ECAM_BASE, MMIO32, MMIO64)[0]


@pytest.fixture
def segment(plan: SegmentPlan, services: RecordingServices) -> PciSegment:
    segment = PciSegment(plan, services)
    ports = ConfigPorts(segment)
    services.bus.add(Range(Space.PIO, CONFIG_PORTS, CONFIG_PORTS_SIZE, ports, "pci config ports"))
    return segment
