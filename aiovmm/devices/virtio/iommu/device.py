"""The IOMMU as a virtio device: requests change domains, domains change the translations of endpoints, faults become events."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Collection, Iterable
from typing import Protocol

from aiovmm.devices.virtio.iommu.domains import MAPPINGS_LIMIT, Added, Bound, Domains, Effect, Outcome, Removed
from aiovmm.devices.virtio.iommu.table import DomainTable
from aiovmm.devices.virtio.iommu.translation import Translation
from aiovmm.devices.virtio.iommu.wire import (
    BYPASS_CONFIG,
    BYPASS_OFFSET,
    FAULT_SIZE,
    INPUT_RANGE,
    MAP_UNMAP,
    PROBE,
    REQUEST_SIZE,
    TAIL_SIZE,
    Malformed,
    Map,
    Probe,
    Request,
    Status,
    config_space,
    fault_event,
    parse,
    tail,
)
from aiovmm.errors import ChainError, SnapshotError, StateError
from aiovmm.memory import PAGE_SIZE, GuestMemory
from aiovmm.runtime.plain import Fields, State
from aiovmm.runtime.tasks import finish
from aiovmm.virtqueue import Chain, Queue, VirtioDevice

__all__ = ["Endpoint", "IommuDevice", "Reach"]

PROBE_SIZE = 512  # bytes for properties; zeros after the last (§5.13.6.7)

PIECES_LIMIT = 2 * MAPPINGS_LIMIT  # in all domains of a VM, and one mapping's more
_LOADED_A_TURN = 32  # mappings of a snapshot, of which there may be very many
_FAULTS_KEPT = 64  # a device that faults is stopped; more come only from a driver that starts it again and again


class Endpoint(Protocol):
    """A device behind the IOMMU, as far as the IOMMU deals with it."""

    def uses(self, start: int, end: int) -> bool:
        """Whether it has to look again, now that [start, end] is mapped or no more: a part of its live rings lies there, or it is
        the host that maps. Called for every MAP and UNMAP: cheap."""

    async def revalidate(self) -> None:
        """What it reaches has changed, its rings perhaps: if one of them is no longer where it was, stop. Never raises."""


class Reach(Protocol):
    """What a device behind the IOMMU can reach: a Translation, or for a device of the host whoever programs the host's IOMMU."""

    def bind(self, domain: DomainTable | None, *, bypass: bool = False) -> None:
        """From now on: `domain`, or without one all of memory (`bypass`) or none of it. The endpoint is revalidated next."""


class IommuDevice(VirtioDevice):
    """`power_on` for each machine that is built, then `add_endpoint` for each device; then it is on its own."""

    device_id = 23
    name = "iommu"
    features = MAP_UNMAP | PROBE | BYPASS_CONFIG | INPUT_RANGE
    queue_sizes = (256, 256)
    suspended_last = True

    def __init__(self, messages: tuple[int, int], address_width: int = 48) -> None:
        """`messages`: the first and the last address that messages go to; `address_width`: bits of the addresses of devices."""
        self._messages = messages
        self._input_end = (1 << address_width) - 1
        self.domains = Domains(input_end=self._input_end, messages=messages)
        self.faults = 0  # accesses that were not translated
        self.events_lost = 0  # of them, those that the driver had no buffer for
        self._memory: GuestMemory | None = None
        self._translations: dict[int, Reach] = {}
        self._endpoints: dict[int, Endpoint] = {}
        self._tables: dict[int, DomainTable] = {}
        self._pending: deque[bytes] = deque(maxlen=_FAULTS_KEPT)
        self._faulted = asyncio.Event()
        self._live = False
        self._stale: set[Endpoint] = set()  # what they reach has changed since they last looked
        self._looking: dict[Endpoint, asyncio.Task[None]] = {}

    # -- the machine's side

    def power_on(self, memory: GuestMemory) -> None:
        """A new machine with this memory: no endpoints, no domains, and those that will come may bypass."""
        self.power_off()
        self._memory = memory

    def power_off(self) -> None:
        """The machine goes, and resets its devices one after the other: that the IOMMU's domains end is no fault of theirs."""
        self.domains = Domains(input_end=self._input_end, messages=self._messages)
        self._memory = None
        self._translations.clear()
        self._endpoints.clear()
        self._tables.clear()
        self._pending.clear()

    def translation(self) -> Translation:
        """What to give a device as its memory. Raises StateError before `power_on`."""
        if self._memory is None:
            raise StateError("the IOMMU stands in no machine")
        return Translation(self._memory)

    def add_endpoint(self, number: int, translation: Reach, endpoint: Endpoint) -> None:
        """`endpoint` reaches memory by `translation`; `number` is its id in the firmware tables."""
        self._translations[number] = translation
        self._endpoints[number] = endpoint
        self._carry_out([self.domains.add_endpoint(number)])

    def remove_endpoint(self, number: int) -> None:
        """The device was taken out, and has stopped. Nothing if there is none, after `power_off`."""
        if self._translations.pop(number, None) is not None:
            self._stale.discard(self._endpoints.pop(number))
            self.domains.remove_endpoint(number)

    def fault(self, number: int, address: int) -> None:
        """An access of endpoint `number` to `address` was not translated: the driver is told, if it has asked for that."""
        translation = self._translations.get(number)
        if not isinstance(translation, Translation):  # the host tells of no faults
            return
        self.faults += 1
        if not self._live or len(self._pending) == _FAULTS_KEPT:
            self.events_lost += 1
            return
        reason, access = translation.explain(address)
        self._pending.append(fault_event(reason, number, address, access))
        self._faulted.set()

    # -- the driver's side

    def read_config(self, offset: int, size: int) -> bytes:
        """`struct virtio_iommu_config`."""
        data = config_space(~(PAGE_SIZE - 1) & (1 << 64) - 1, self._input_end, PROBE_SIZE, self.domains.bypass)
        return data[offset : offset + size].ljust(size, b"\0")

    def write_config(self, offset: int, data: bytes) -> Awaitable[None] | None:
        """Only `bypass` can be written, with 0 or 1 (§5.13.4). Done when devices have let go of what they may not reach."""
        if not offset <= BYPASS_OFFSET < offset + len(data) or data[BYPASS_OFFSET - offset] > 1:
            return None
        tasks = self._revalidate(self._carry_out(self.domains.set_bypass(bool(data[BYPASS_OFFSET - offset]))))
        return _ended(tasks) if tasks else None

    def reset(self) -> None:
        """All endpoints are detached; the configuration stays."""
        self._revalidate(self._carry_out(self.domains.reset()))
        self._tables.clear()
        self._pending.clear()

    def save(self) -> State:
        """Domains with their mappings, and faults that the driver has not been told of."""
        return {"domains": self.domains.save(), "faults": list(self._pending)}

    async def load(self, state: State) -> None:
        """Into the IOMMU of a machine with the same devices behind it. Raises SnapshotError."""
        fields = Fields(state, self.name)
        domains, faults = fields.state("domains"), fields.list("faults", most=_FAULTS_KEPT)
        fields.end()
        if not all(isinstance(fault, bytes) and len(fault) == FAULT_SIZE for fault in faults):
            raise SnapshotError(f"{self.name}: a fault is told in {FAULT_SIZE} bytes")
        for number, effect in enumerate(self.domains.load(domains), 1):
            if effect is not None:
                self._carry_out([effect])
            if number % _LOADED_A_TURN == 0:
                self._check_pieces()
                await asyncio.sleep(0)
        self._check_pieces()
        self._pending.extend(faults)

    async def close(self) -> None:
        """Let the stopping of devices end."""
        await _ended(self._looking.values())

    async def run(self, queues: list[Queue], features: int) -> None:
        """Answer requests and report faults. Raises ChainError for a buffer that no fault fits into."""
        self._live = True
        if self._pending:
            self._faulted.set()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._serve(queues[0]))
                tasks.create_task(self._report(queues[1]))
        finally:
            self._live = False

    async def _serve(self, queue: Queue) -> None:
        async for chain in queue:
            request = _read(chain)
            if request is not None:
                await self._answer(queue, chain, request)
            else:  # not even the answer's layout is known (§5.13.6.2)
                queue.push(chain)

    async def _answer(self, queue: Queue, chain: Chain, request: Request) -> None:
        """To its end in any case: a request that was carried out and not answered would fail when it comes again."""
        outcome = self._handle(request)
        try:
            await finish(_ended(self._revalidate(self._carry_out(outcome.effects))))
        finally:
            if isinstance(request, Probe):
                chain.write(outcome.properties.ljust(PROBE_SIZE, b"\0"))
            chain.write(tail(outcome.status))
            queue.push(chain)

    @property
    def _pieces(self) -> int:
        """A mapping takes as many records as it crosses regions of memory, of which there may be hundreds."""
        return sum(map(len, self._tables.values()))

    def _check_pieces(self) -> None:
        """Raises SnapshotError for more than `_handle` lets a driver have."""
        regions = 0 if self._memory is None else len(self._memory.regions)
        if self._pieces >= PIECES_LIMIT + regions:
            raise SnapshotError(f"{self.name}: its mappings take more than {PIECES_LIMIT} pieces of memory")

    def _handle(self, request: Request) -> Outcome:
        """Carry it out, if there is room for it."""
        if isinstance(request, Map) and self._pieces >= PIECES_LIMIT:
            return Outcome(Status.NOMEM)
        return self.domains.handle(request)

    def _carry_out(self, effects: Iterable[Effect]) -> list[Endpoint]:
        """Change the translations; the endpoints that have to look at their rings again."""
        again: list[Endpoint] = []
        for effect in effects:
            match effect:
                case Added(domain, mapping):
                    self._tables[domain].add(mapping)
                    again += self._users(domain, mapping.start, mapping.end)
                case Removed(domain, start, end):
                    self._tables[domain].remove(start, end)
                    again += self._users(domain, start, end)
                case Bound(number, domain, bypass):
                    self._translations[number].bind(self._table(domain), bypass=bypass)
                    again.append(self._endpoints[number])
        return again

    def _users(self, domain: int, start: int, end: int) -> list[Endpoint]:
        return [e for n, e in self._endpoints.items() if self.domains.domain_of(n) == domain and e.uses(start, end)]

    def _table(self, domain: int | None) -> DomainTable | None:
        """The table of a domain. Those of domains that have ended go: their number may come again, with other mappings."""
        for number in [n for n in self._tables if not self.domains.exists(n)]:
            del self._tables[number]
        if domain is None:
            return None
        assert self._memory is not None
        if domain not in self._tables:
            self._tables[domain] = DomainTable(self._memory)
        return self._tables[domain]

    def _revalidate(self, endpoints: Collection[Endpoint]) -> list[asyncio.Task[None]]:
        """Have them look at their rings, whether somebody waits for it or not: a task for each, which looks once more if what it
        reaches changes meanwhile, however often that is."""
        self._stale.update(endpoints)
        for endpoint in self._stale - self._looking.keys():
            task = asyncio.get_running_loop().create_task(self._look(endpoint), name="iommu revalidation")
            self._looking[endpoint] = task
        return [self._looking[endpoint] for endpoint in endpoints]

    async def _look(self, endpoint: Endpoint) -> None:
        try:
            while endpoint in self._stale:
                self._stale.discard(endpoint)
                await endpoint.revalidate()
        finally:
            del self._looking[endpoint]

    async def _report(self, queue: Queue) -> None:
        while True:
            await self._faulted.wait()
            self._faulted.clear()
            while self._pending:
                event = self._pending.popleft()
                chain = queue.pop()
                if chain is None:
                    self.events_lost += 1
                    continue
                if chain.writable_size < FAULT_SIZE:
                    raise ChainError(f"a buffer for events has room for {FAULT_SIZE} bytes", chain.head)
                chain.write(event)
                queue.push(chain)


async def _ended(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Wait for them; cancelled, let them go on."""
    waiting = set(tasks)
    if waiting:
        await asyncio.wait(waiting)


def _read(chain: Chain) -> Request | None:
    """The request of a chain, or None if it is to be returned as it came: of an unknown type, or without room for its status. One
    that can be answered with a status alone, since it is too short, has been."""
    if chain.writable_size < TAIL_SIZE:
        return None
    try:
        request = parse(chain.read(min(chain.unread, REQUEST_SIZE)))
    except Malformed:
        chain.write(tail(Status.INVAL))
        return None
    if isinstance(request, Probe) and chain.writable_size < PROBE_SIZE + TAIL_SIZE:
        chain.reserve(chain.room - TAIL_SIZE)  # left as it is, where the properties would be
        chain.write(tail(Status.INVAL))
        return None
    return request
