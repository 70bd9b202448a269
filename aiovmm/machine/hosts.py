"""Devices of the host (VFIO) in one machine: what they reach of its memory, KVM's knowledge of them, their functions on PCI.

    plug      memory mapped for the first that reaches all of it ──► KVM told of its file ───► reset ──► in its slot
    unplug    out of its slot: BARs and interrupts gone, reset ──► memory unmapped after the last ──► KVM forgets its file

The devices are open before, and stay so (`machine.passthrough`). One comes or goes at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from aiovmm.devices.virtio.mem import BLOCK_SIZE, MemDevice
from aiovmm.kvm.vfio import KvmVfio
from aiovmm.kvm.vmfd import VmFd
from aiovmm.memory import GuestMemory, MemoryRegion
from aiovmm.pci.root import PciAddress, PciRoot
from aiovmm.runtime.tasks import finish, in_thread
from aiovmm.runtime.undoing import Undoing
from aiovmm.vfio import AddressSpace, Follower, VfioFunction, VfioServices
from aiovmm.vfio.space import Reachable, VfioFile

if TYPE_CHECKING:
    from aiovmm.machine.iommu import MachineIommu
    from aiovmm.machine.passthrough import HostPlace

__all__ = ["MachineHosts"]

OnError = Callable[[str, Exception], None]


class MachineHosts:
    """See the module. `on_error(id, error)` hears what the host refuses while the guest runs."""

    def __init__(
        self,
        name: str,
        root: PciRoot,
        services: VfioServices,
        vm: VmFd,
        memory: GuestMemory,
        on_error: OnError,
        iommu: MachineIommu | None = None,
        growing: Sequence[MemDevice] = (),
    ) -> None:
        """`growing`: whose regions of memory are there in parts, which is all that a device reaches of them."""
        self._off_loop: Any = partial(in_thread, f"{name}: vfio dma")
        self._root = root
        self._services = services
        self._vm = vm
        self._memory = memory
        self._on_error = on_error
        self._iommu = iommu
        self._kvm: KvmVfio | None = None
        self._known: dict[VfioFile, int] = {}  # to KVM, and how many devices here are of each
        self._mapped: dict[AddressSpace, int] = {}  # that reach all of memory, and how many devices here are in each
        self._followers: list[Follower] = []
        self._there: dict[str, Undoing] = {}
        self._busy = asyncio.Lock()
        self._growing = growing
        for memory_device in growing:
            memory_device.reach = self
        self.addresses: dict[str, PciAddress] = {}
        """By id."""

    async def plug(self, place: HostPlace) -> PciAddress:
        """Put in a device that is open. Raises HostError, UsageError; then nothing of it is in the machine."""
        async with self._busy:
            steps = Undoing()
            try:
                address = await self._plug(place, steps)
            except BaseException:
                await finish(steps.aclose())
                raise
            self._there[place.id], self.addresses[place.id] = steps, address
            return address

    async def unplug(self, id_: str) -> None:
        """Take one out: it is quiet, and reaches no memory any more. It stays open. Raises KeyError, HostError."""
        async with self._busy:
            steps = self._there.pop(id_)
            del self.addresses[id_]
            await finish(steps.aclose())

    async def aclose(self) -> None:
        """Take all out, the last first, whatever fails on the way. Idempotent."""
        out = Undoing()
        for id_ in self._there:
            out.push(partial(self.unplug, id_))
        try:
            await out.aclose()
        finally:
            for memory_device in self._growing:
                memory_device.reach = None
            kvm, self._kvm = self._kvm, None
            if kvm is not None:
                await self._off_loop(kvm.close)

    # -- memory that comes and goes

    async def memory_came(self, region: MemoryRegion) -> None:
        """One more region of the guest's: devices reach it. Raises HostError; then it is to go again."""
        await self._came([Reachable(region.gpa, region.size, region.host, region.readonly)])

    async def memory_gone(self, region: MemoryRegion) -> None:
        """It is none of the guest's regions any more, and mapped here still: no device reaches it from now on. Raises
        HostError."""
        await self._gone([(region.gpa, region.size)], [(region.gpa, region.size)])

    async def blocks_came(self, region: MemoryRegion, first: int, count: int) -> None:
        """See BlockReach."""
        await self._came(_blocks(region, first, bytes([1]) * count))

    async def blocks_gone(self, region: MemoryRegion, first: int, blocks: bytes | bytearray) -> None:
        """See BlockReach."""
        start = region.gpa + first * BLOCK_SIZE
        await self._gone(
            ((piece.gpa, piece.size) for piece in _blocks(region, first, blocks)),
            list(_runs(start, blocks)),
        )

    async def _came(self, pieces: Iterable[Reachable]) -> None:
        async with self._busy:
            for space in self._mapped:  # one, since the others go by their followers
                await self._off_loop(space.map, pieces)
            for follower in self._followers:
                await follower.memory_came()

    async def _gone(self, pieces: Iterable[tuple[int, int]], ranges: Sequence[tuple[int, int]]) -> None:
        async with self._busy:
            for space in self._mapped:
                await finish(self._off_loop(space.unmap_ranges, pieces))
            for follower in self._followers:
                await follower.forget(ranges)

    def _reachable(self) -> Iterator[Reachable]:
        """All that there is now; gone through in a thread, for there may be many blocks."""
        growing = {device.region.gpa: device.blocks.map for device in self._growing}
        regions = self._memory.regions
        whole = [
            Reachable(region.gpa, region.size, region.host, region.readonly)
            for region in regions
            if region.gpa not in growing
        ]
        return chain(whole, *(_blocks(region, 0, growing[region.gpa]) for region in regions if region.gpa in growing))

    # -- the steps, each with its undoing

    async def _plug(self, place: HostPlace, steps: Undoing) -> PciAddress:
        if place.iommu:
            steps.push(partial(self._off_loop, place.space.unmap))
        else:
            await self._map(place.space, steps)
        await finish(self._tell_kvm(place.device.known, steps))
        free = self._root.free_place(place.segment, place.slot)
        function = VfioFunction(place.device, self._services, lambda _, error: self._on_error(place.id, error), free)
        steps.push(function.close)
        await function.start()
        address = self._root.add(function, free.segment, free.slot)
        steps.push(partial(self._root.remove, address))
        if place.iommu:
            await self._put_behind(place, address, steps)
        return address

    async def _map(self, space: AddressSpace, steps: Undoing) -> None:
        self._mapped[space] = self._mapped.get(space, 0) + 1
        steps.push(partial(self._unmap, space))  # whatever is mapped when a caller gives up
        if self._mapped[space] == 1:
            await self._off_loop(space.map, self._reachable())

    async def _unmap(self, space: AddressSpace) -> None:
        self._mapped[space] -= 1
        if not self._mapped[space]:
            del self._mapped[space]
            await self._off_loop(space.unmap)

    async def _tell_kvm(self, file: VfioFile, steps: Undoing) -> None:
        if self._kvm is None:
            self._kvm = KvmVfio(self._vm)
        if file not in self._known:
            await self._off_loop(self._kvm.add_file, file.fd)
        self._known[file] = self._known.get(file, 0) + 1
        steps.push(partial(self._have_kvm_forget, file))

    async def _have_kvm_forget(self, file: VfioFile) -> None:
        self._known[file] -= 1
        if not self._known[file]:
            del self._known[file]
            assert self._kvm is not None, "it knows the file"
            await self._off_loop(self._kvm.remove_file, file.fd)

    async def _put_behind(self, place: HostPlace, address: PciAddress, steps: Undoing) -> None:
        assert self._iommu is not None, "a machine with a device behind an IOMMU has one"
        failed = partial(self._on_error, place.id)
        follower = Follower(self._memory, place.space, failed, place.device.label, self._reachable)
        steps.push(follower.aclose)
        self._iommu.plugged_behind(address, follower, follower)
        steps.push(partial(self._iommu.unplugged, address))
        self._followers.append(follower)
        steps.push(partial(self._followers.remove, follower))
        await follower.revalidate()


def _blocks(region: MemoryRegion, first: int, blocks: bytes | bytearray) -> Iterator[Reachable]:
    """Those from `first` on that have a 1. Each is mapped by itself, for what was mapped at once is unmapped at once."""
    for number, there in enumerate(blocks, first):
        if there:
            at = number * BLOCK_SIZE
            yield Reachable(region.gpa + at, BLOCK_SIZE, region.host + at)


def _runs(start: int, blocks: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """(address, bytes) of what of them lies side by side."""
    end = 0
    while (begin := blocks.find(1, end)) >= 0:
        end = blocks.find(0, begin)
        end = len(blocks) if end < 0 else end
        yield start + begin * BLOCK_SIZE, (end - begin) * BLOCK_SIZE
