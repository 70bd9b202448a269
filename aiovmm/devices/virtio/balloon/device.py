"""The balloon: the guest names pages that it does without, and the host takes them back.

A page that is in the balloon, or that was reported as free, reads as zeros and takes memory again when the guest next touches
it; so taking pages out of the balloon needs nothing from the device. Giving memory back is a system call that may take
milliseconds for many pages: a thread does it, one request after the other.
"""

from __future__ import annotations

import asyncio
import bisect
import os
from collections.abc import Sequence
from typing import Self

from aiovmm.config import BalloonConfig
from aiovmm.devices.virtio.balloon.protocol import (
    DEFLATE_ON_OOM,
    MUST_TELL_HOST,
    PAGE,
    PAGES_AT_ONCE,
    REPORTING,
    STATS_VQ,
    BalloonStats,
    config_space,
    page_parts,
    page_runs,
    parse_stats,
)
from aiovmm.errors import ChainError, GuestFault, HostError, StateError, UsageError
from aiovmm.memory import GuestMemory
from aiovmm.native import ffi, lib, owners
from aiovmm.runtime.home import HomeLoop
from aiovmm.runtime.plain import Fields, State
from aiovmm.runtime.tasks import finish
from aiovmm.runtime.turns import next_turn
from aiovmm.runtime.worker import Worker
from aiovmm.virtqueue import Chain, Queue, VirtioDevice

__all__ = ["BalloonDevice"]

_STATS_LIMIT = 640  # bytes
_HIGHEST = 1 << 64


class BalloonDevice(VirtioDevice):
    """`memory_size` is the guest's RAM, and `size` what it is to do without from the start, both in bytes. `deflate_on_oom`: a
    guest that runs out of memory may take some back. `free_page_reporting`: it tells which pages it has no use for."""

    device_id = 5
    name = "balloon"
    physical = True

    def __init__(
        self, memory_size: int, size: int = 0, *, deflate_on_oom: bool = False, free_page_reporting: bool = False
    ) -> None:
        self.features = MUST_TELL_HOST | STATS_VQ | DEFLATE_ON_OOM * deflate_on_oom | REPORTING * free_page_reporting
        self.queue_sizes = (128,) * (4 if free_page_reporting else 3)
        self._memory_size = memory_size
        self._target = self._check(size)
        self._actual = 0
        self._home = HomeLoop("balloon")
        self._moved: asyncio.Event | None = None  # while somebody waits
        self._worker = Worker(self.name)
        self._stats: asyncio.Future[BalloonStats] | None = None  # what was asked for
        self._asked = asyncio.Event()
        self._live = False
        self.given_back = 0  # bytes, by the balloon and by reports, over all time

    @classmethod
    def from_config(cls, config: BalloonConfig, memory_size: int) -> Self:
        """The balloon that `config` describes. Raises UsageError."""
        return cls(
            memory_size,
            config.size,
            deflate_on_oom=config.deflate_on_oom,
            free_page_reporting=config.free_page_reporting,
        )

    def _check(self, size: int) -> int:
        if not isinstance(size, int) or not 0 <= size < self._memory_size or size % PAGE:
            raise UsageError(
                f"a balloon of {size!r} bytes: it has whole pages of {PAGE}, and less than the guest's {self._memory_size}"
            )
        return size

    # -- what users see --------------------------------------------------------------------------------------------------

    @property
    def target(self) -> int:
        """Bytes that the guest is asked to do without."""
        return self._target

    @property
    def actual(self) -> int:
        """Bytes that it says it does without; 0 before its driver is there."""
        return self._actual

    async def resize(self, size: int, timeout: float | None = 10.0) -> None:
        """Ask the guest to do without `size` bytes, whole pages, and wait until it does.

        Raises TimeoutError if it does not within `timeout` seconds (None: wait for ever); it stays asked. A guest gives what
        it can spare, and with `deflate_on_oom` may take it back. Raises UsageError for a size that cannot be.
        """
        from aiovmm.runtime.awake import awake_timeout  # for who asks
        from aiovmm.runtime.timeouts import check_seconds

        self._home.check()
        check_seconds(timeout, "resize(timeout=)")
        self._target = self._check(size)
        self.config_changed()
        try:
            async with awake_timeout(timeout):
                while self._actual != self._target:
                    self._moved = self._moved or asyncio.Event()
                    await self._moved.wait()
        except TimeoutError:
            why = "gives" if self._live else "has no driver for the balloon, and gives"
            raise TimeoutError(f"the guest {why} {self._actual} bytes and not {size} after {timeout:g} s") from None

    async def stats(self, timeout: float | None = 10.0) -> BalloonStats:
        """What the guest says of its memory now. Raises TimeoutError if it does not answer, StateError if it has no driver for
        the balloon, or one that keeps no statistics."""
        from aiovmm.runtime.awake import awake_timeout
        from aiovmm.runtime.timeouts import check_seconds

        self._home.check()
        check_seconds(timeout, "stats(timeout=)")
        if not self._live:
            raise StateError("the guest has no driver for the balloon that keeps statistics")
        if self._stats is None:
            self._stats = asyncio.get_running_loop().create_future()
            self._asked.set()
        async with awake_timeout(timeout):
            return await asyncio.shield(self._stats)

    # -- the device ------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """There is nothing to acquire."""
        self._home.check()
        self._worker.name = f"{self.label} give back"

    async def close(self) -> None:
        """End the thread."""
        await self._worker.aclose()

    def read_config(self, offset: int, size: int) -> bytes:
        """§5.5.4."""
        return config_space(self._target, self._actual)[offset : offset + size].ljust(size, b"\0")

    def write_config(self, offset: int, data: bytes) -> None:
        """`actual`, which the driver writes as a whole."""
        if offset == 4 and len(data) == 4:
            self._set_actual(int.from_bytes(data, "little") * PAGE)

    def _set_actual(self, size: int) -> None:
        self._actual = size
        moved, self._moved = self._moved, None
        if moved is not None:
            moved.set()

    def reset(self) -> None:
        """The guest has all of its memory again."""
        self._live = False
        self._end_stats()
        self._set_actual(0)

    def save(self) -> State:
        """What it is asked to do without, and what it says it does, in pages. Which pages these are, only the guest knows."""
        return {"target": self._target // PAGE, "actual": self._actual // PAGE}

    def load(self, state: State) -> None:
        """Raises SnapshotError."""
        fields = Fields(state, self.name)
        target, actual = (
            fields.number("target", 0, self._memory_size // PAGE - 1),
            fields.number("actual", 0, 0xFFFFFFFF),
        )
        fields.end()
        self._target, self._actual = target * PAGE, actual * PAGE

    async def run(self, queues: list[Queue], features: int) -> None:
        """Serve all queues. Raises ChainError, GuestFault. Nothing is being given back any more when it ends."""
        memory = queues[0].memory
        if not isinstance(memory, GuestMemory):
            raise StateError("a balloon cannot be behind an IOMMU: its driver names pages by their physical addresses")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._inflate(queues[0], memory))
                group.create_task(_deflate(queues[1]))
                if features & STATS_VQ:
                    self._live = True
                    group.create_task(self._keep_stats(queues[2]))
                # Queues are numbered as if those of features that were not negotiated were not there.
                if features & REPORTING:
                    group.create_task(self._take_reports(queues[3 if features & STATS_VQ else 2], memory))
        finally:
            if not self.suspending:
                self._live = False
                self._end_stats()

    async def _inflate(self, queue: Queue, memory: GuestMemory) -> None:
        async for chain in queue:
            for part in page_parts(chain.read_all(4 * PAGES_AT_ONCE)):
                await self._give_back(_spans(memory, page_runs(part)))
                await next_turn()
            _return(queue, chain)
            del chain  # it would hold guest memory while this waits

    async def _take_reports(self, queue: Queue, memory: GuestMemory) -> None:
        """Pages that are free, as they come (§5.5.6.7): buffers of the chain, of which nothing is kept."""
        async for chain in queue:
            await self._give_back(_whole_pages(memory, chain.writable))
            _return(queue, chain)
            del chain

    async def _give_back(self, spans: Sequence[tuple[int, int]]) -> None:
        """Raises HostError if the host's kernel refuses, as it does for no memory that a VM can be configured with."""
        native = ffi.new("struct avmm_span[]", spans)
        # To its end in any case: the memory is not unmapped meanwhile.
        error = await finish(_result(self._worker.submit(lambda: lib.avmm_mem_give_back(native, len(spans)))))
        if error:
            raise HostError("giving back guest memory", error, os.strerror(error))
        self.given_back += sum(size for _, size in spans)

    async def _keep_stats(self, queue: Queue) -> None:
        """The driver has given a buffer with the first statistics; returned, it comes again with new ones (§5.5.6.3)."""
        async for chain in queue:
            answer = parse_stats(chain.read_all(_STATS_LIMIT))
            if self._stats is not None and not self._asked.is_set():
                self._stats.set_result(answer)
                self._stats = None
            await self._asked.wait()
            self._asked.clear()
            _return(queue, chain)
            del chain

    def _end_stats(self) -> None:
        stats, self._stats = self._stats, None
        self._asked.clear()
        if stats is not None and not stats.done():
            stats.set_exception(StateError("the guest's driver has gone before it answered"))
            stats.exception()  # seen: whoever waits raises it


async def _deflate(queue: Queue) -> None:
    async for chain in queue:
        page_parts(chain.read_all(4 * PAGES_AT_ONCE))
        _return(queue, chain)
        del chain


def _return(queue: Queue, chain: Chain) -> None:
    queue.push(chain)
    queue.flush()


async def _result(future: asyncio.Future[int]) -> int:
    return await future


def _spans(memory: GuestMemory, runs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """(host address, size) of RAM, which may be hundreds of regions, one behind the other. Raises GuestFault for anything else: a
    pmem image would lose what it has there."""
    ram = [region for region in memory.regions if region.ram]
    bases = [region.gpa for region in ram]
    spans = []
    for address, size in runs:
        while size:
            i = bisect.bisect_right(bases, address) - 1
            if i < 0 or address >= ram[i].end:
                raise GuestFault(address, size)
            part = min(size, ram[i].end - address)
            spans.append((ram[i].host + address - ram[i].gpa, part))
            address, size = address + part, size - part
    return spans


def _whole_pages(memory: GuestMemory, segments: Sequence[memoryview]) -> list[tuple[int, int]]:
    """(host address, size) of the pages of RAM that lie wholly in buffers. Raises ChainError where there is no buffer."""
    if not segments:
        raise ChainError("a report without pages")
    ram = sorted((region.host, region.host + region.size) for region in memory.regions if region.ram)
    spans = []
    for segment in segments:
        host = owners.address(owners.view(segment))
        start, end = -(-host // PAGE) * PAGE, (host + len(segment)) // PAGE * PAGE
        i = bisect.bisect_right(ram, (start, _HIGHEST)) - 1
        if end > start and i >= 0 and end <= ram[i][1]:
            spans.append((start, end - start))
    return spans
