"""All PCI of one machine: its segments, their bridges, and on a PC the configuration ports."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence

from aiovmm.bus import Range, Space
from aiovmm.errors import UsageError
from aiovmm.pci.config_ports import CONFIG_PORTS, CONFIG_PORTS_SIZE, ConfigPorts
from aiovmm.pci.function import PciFunction
from aiovmm.pci.plan import SegmentPlan
from aiovmm.pci.segment import PciSegment
from aiovmm.pci.services import PciServices, Place
from aiovmm.runtime.dataclass import dataclass
from aiovmm.runtime.plain import Fields, State

__all__ = ["PciAddress", "PciRoot"]


@dataclass(frozen=True)
class PciAddress:
    """Where a function is. Bus and function number are always 0."""

    segment: int
    slot: int

    def __str__(self) -> str:
        """As Linux writes it: 0000:00:01.0."""
        return f"{self.segment:04x}:00:{self.slot:02x}.0"

    @property
    def requester_id(self) -> int:
        """Bus, device and function as one number, as an IOMMU sees the function within its segment."""
        return self.slot << 3


class PciRoot:
    """Segments as planned, plugged into `services.bus`; those whose numbers are in `bare` have no host bridge in slot 0."""

    def __init__(self, plans: Sequence[SegmentPlan], services: PciServices, bare: Collection[int] = ()) -> None:
        self.segments = [PciSegment(plan, services, bare=plan.number in bare) for plan in plans]
        self._services = services
        self._ports: Range | None = None
        self._config_ports: ConfigPorts | None = None

    def add_config_ports(self, reset: Callable[[], None] | None = None) -> None:
        """Configuration mechanism #1, for a PC. `reset` is called when the guest asks port 0xCF9 for one."""
        self._config_ports = ports = ConfigPorts(self.segments[0], reset)
        self._ports = self._services.bus.add(
            Range(Space.PIO, CONFIG_PORTS, CONFIG_PORTS_SIZE, ports, "pci config ports", ports.fast)
        )

    def add(self, function: PciFunction, segment: int = 0, slot: int | None = None) -> PciAddress:
        """Plug `function` into the first free slot of `segment`, or into `slot`. Raises UsageError."""
        return PciAddress(segment, self._segment(segment).add(function, slot))

    def reserve(self, segment: int, slot: int) -> None:
        """Keep a slot for a function that will be added by its number. Raises UsageError."""
        self._segment(segment).reserve(slot)

    def free_place(self, segment: int = 0, slot: int | None = None) -> Place:
        """Where `add` would put a function. Raises UsageError."""
        return Place(segment, self._segment(segment).free_slot(slot))

    def shun(self, address: PciAddress) -> None:
        """See PciSegment.shun. Raises UsageError if there is no such segment."""
        self._segment(address.segment).shun(address.slot)

    def welcome(self, segment: int, slot: int) -> None:
        """See PciSegment.welcome. Raises UsageError if there is no such segment."""
        self._segment(segment).welcome(slot)

    async def remove(self, address: PciAddress) -> None:
        """Unplug and close the function at `address`. Raises UsageError if there is none."""
        await self._segment(address.segment).remove(address.slot)

    def when_looked_at(self, address: PciAddress, callback: Callable[[], None]) -> None:
        """See PciSegment.when_looked_at. Raises UsageError if there is no such segment."""
        self._segment(address.segment).when_looked_at(address.slot, callback)

    def function(self, address: PciAddress) -> PciFunction | None:
        """What is at `address`. Raises UsageError if there is no such segment."""
        return self._segment(address.segment).function(address.slot)

    # -- for a snapshot: all vCPUs are parked --------------------------------------------------------------------------------

    async def suspend(self) -> None:
        """All functions end what is with the host, or put it back, and stop. Bounded (`saved.QUIESCE_LIMIT`). Follow it by
        `unsuspend`, also if it fails. Raises SnapshotError."""
        from aiovmm.pci.saved import suspend_all

        await suspend_all(self._functions)

    async def unsuspend(self) -> None:
        """All go on, where they were or as `load` told."""
        from aiovmm.pci.saved import unsuspend_all

        await unsuspend_all(self._functions)

    def save(self) -> State:
        """While all are suspended. Raises SnapshotError."""
        ports = None if self._config_ports is None else self._config_ports.save()
        return {"segments": [segment.save() for segment in self.segments], "ports": ports}

    async def load(self, state: State) -> None:
        """Into functions that were plugged in as they had been; they are suspended then. Raises SnapshotError."""
        fields = Fields(state, "PCI")
        segments = fields.list("segments", len(self.segments))
        ports = None if self._config_ports is None else fields.state("ports")
        for segment, saved in zip(self.segments, segments, strict=True):
            await segment.load(saved)
        if self._config_ports is not None and ports is not None:
            self._config_ports.load(ports)

    @property
    def _functions(self) -> list[PciFunction]:
        return [function for segment in self.segments for function in segment.functions.values()]

    async def close(self) -> None:
        """Unplug everything and leave the bus. Idempotent."""
        if len(self.segments) == 1:
            await self.segments[0].close()
        else:
            await asyncio.gather(*(segment.close() for segment in reversed(self.segments)))
        if self._ports is not None:
            self._services.bus.remove(self._ports)
            self._ports = None

    def _segment(self, number: int) -> PciSegment:
        if not 0 <= number < len(self.segments):
            raise UsageError(f"there is no PCI segment {number}: this machine has {len(self.segments)}")
        return self.segments[number]
