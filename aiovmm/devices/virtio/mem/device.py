"""virtio-mem as a device: the driver plugs and unplugs blocks, until it has as many as the host asks for."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from typing import Protocol

from aiovmm.devices.virtio.mem.blocks import Blocks, Outcome
from aiovmm.devices.virtio.mem.protocol import (
    ACPI_PXM,
    BLOCK_SIZE,
    REQUEST_SIZE,
    UNPLUGGED_INACCESSIBLE,
    Answer,
    answer,
    config_space,
    parse,
)
from aiovmm.errors import ChainError, HostError, UsageError
from aiovmm.memory import MemoryRegion
from aiovmm.native import lib, owners
from aiovmm.runtime.plain import State
from aiovmm.runtime.tasks import finish
from aiovmm.runtime.worker import Worker
from aiovmm.virtqueue import Chain, Queue, VirtioDevice

__all__ = ["BlockReach", "MemDevice"]

_BLOCKS_A_TURN = 4096  # so many that are to be looked at count for one request more


class BlockReach(Protocol):
    """Who lets devices of the host reach what is plugged, and nothing else of the region. Both are called in the event loop, and
    are not cancelled."""

    async def blocks_came(self, region: MemoryRegion, first: int, count: int) -> None:
        """They have been plugged, and the driver is not told yet. Raises HostError; then no device reaches them."""

    async def blocks_gone(self, region: MemoryRegion, first: int, blocks: bytes | bytearray) -> None:
        """Those from `first` on that have a 1 are unplugged; when this is done no device reaches them. Raises HostError."""


class MemDevice(VirtioDevice):
    """Up to `size` bytes, of which `requested` from the start. Its region of guest memory is each machine's: `power_on`."""

    device_id = 24
    name = "mem"
    features = UNPLUGGED_INACCESSIBLE
    queue_sizes = (128,)

    def __init__(self, size: int, requested: int = 0, node: int | None = None, zone: str | None = None) -> None:
        """`node`: the guest's NUMA node that it is in (its proximity domain); `zone`: whose memory it is."""
        self.zone = zone
        self.blocks = Blocks(size)
        self.features = UNPLUGGED_INACCESSIBLE | (0 if node is None else ACPI_PXM)
        self._node = node or 0
        self.blocks.requested = self._check(requested)
        self.given_back = 0  # bytes, over all time
        self.reach: BlockReach | None = None
        """A machine's, while it has devices of the host."""
        self._region: MemoryRegion | None = None
        self._worker = Worker(self.name)
        self._moved = asyncio.Event()

    def _check(self, size: int) -> int:
        if not 0 <= size <= self.blocks.size or size % BLOCK_SIZE:
            raise UsageError(
                f"{size} bytes of hotplugged memory: they come in blocks of {BLOCK_SIZE}, up to hotplug_size, {self.blocks.size}"
            )
        return size

    # -- the machine's side

    def power_on(self, region: MemoryRegion) -> None:
        """A new machine, whose memory this is. Nothing of it is plugged: the guest's driver does that again."""
        self._region = region
        self.blocks.start = region.gpa
        self.blocks.clear()

    @property
    def region(self) -> MemoryRegion:
        """Of the present machine."""
        assert self._region is not None, "a machine is on"
        return self._region

    def request(self, size: int) -> None:
        """Have the driver plug or unplug blocks until it has `size` bytes. Raises UsageError."""
        self.blocks.requested = self._check(size)
        self._tell()
        self.config_changed()

    @property
    def moved(self) -> asyncio.Event:
        """Set once it has plugged or unplugged some, or was asked for another size; then there is a new one."""
        return self._moved

    def _tell(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    @property
    def served(self) -> bool:
        """Whether the guest has done what is asked for."""
        return self.blocks.plugged == self.blocks.requested

    # -- the device

    async def open(self) -> None:
        """There is nothing to acquire."""
        self._worker.name = f"{self.label} give back"

    async def close(self) -> None:
        """End the thread, and let go of the memory."""
        await self._worker.aclose()
        self._region = None

    def read_config(self, offset: int, size: int) -> bytes:
        """§5.15.4."""
        return config_space(self.blocks.sizes, self._node)[offset : offset + size].ljust(size, b"\0")

    async def run(self, queues: list[Queue], features: int) -> None:
        """Answer requests. Raises ChainError for what cannot be answered. Nothing is being given back any more when it ends."""
        queue = queues[0]
        async for chain in queue:
            outcome = self._carry_out(queue, chain)
            try:
                if outcome.freed:
                    await self._give_back(outcome.first, outcome.freed)
                elif outcome.came and self.reach is not None:
                    reached = asyncio.ensure_future(self._reached(self.reach, outcome))
                    try:
                        await finish(reached)
                    finally:
                        outcome = reached.result()
            except asyncio.CancelledError:  # it was carried out, and would be refused if it came again
                self._answer(queue, chain, outcome)
                raise
            self._answer(queue, chain, outcome)
            del chain  # it would hold guest memory while this waits

    def _answer(self, queue: Queue, chain: Chain, outcome: Outcome) -> None:
        self._tell()
        chain.write(answer(outcome.answer, outcome.state))
        queue.push(chain)
        queue.flush()

    def _carry_out(self, queue: Queue, chain: Chain) -> Outcome:
        request = parse(chain.read(min(chain.unread, REQUEST_SIZE)))
        if chain.writable_size < len(answer(Answer.ACK)):
            raise ChainError("a request to virtio-mem has no room for its answer", chain.head)
        if request is None:
            return Outcome(Answer.ERROR)
        queue.charge(self.blocks.looked_at(request) // _BLOCKS_A_TURN)
        return self.blocks.handle(request)

    async def _reached(self, reach: BlockReach, outcome: Outcome) -> Outcome:
        """What to answer to a request for blocks that devices of the host are to reach."""
        try:
            await reach.blocks_came(self.region, outcome.first, outcome.came)
        except HostError as exc:
            self.report(exc)
            self.blocks.take_back(outcome.first, outcome.came)
            return Outcome(Answer.NACK)
        return outcome

    async def _give_back(self, first: int, blocks: bytes | bytearray) -> None:
        """Those from `first` on that have a 1. To its end in any case: the memory is not unmapped meanwhile. Raises HostError if
        the host's kernel refuses."""
        if self.reach is not None:
            await finish(self.reach.blocks_gone(self.region, first, blocks))
        host = self.region.host + first * BLOCK_SIZE
        error, count = await finish(self._worker.submit(partial(_given_back, host, blocks)))
        if error:
            raise HostError("giving back hotplugged memory", error, os.strerror(error))
        self.given_back += count * BLOCK_SIZE

    # -- state

    def save(self) -> State:
        """What is plugged and what is requested; the memory itself is the machine's."""
        return self.blocks.save()

    def load(self, state: State) -> None:
        """See VirtioDevice.load."""
        self.blocks.load(state)


def _given_back(host: int, blocks: bytes | bytearray) -> tuple[int, int]:
    """In a thread, since there may be very many: an errno, and how many they were."""
    error = lib.avmm_mem_give_back_blocks(host, BLOCK_SIZE, owners.view(blocks), len(blocks))
    return error, blocks.count(1)
