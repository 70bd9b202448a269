"""Endpoints, domains and mappings as the guest's requests make them (VIRTIO 1.2 §5.13.6). Pure.

    endpoint:  unattached --ATTACH--> attached to a domain --DETACH, reset--> unattached
                                         |    ^
                                         +----+ ATTACH to another domain (leaves the first)
    domain:    begins with its first endpoint, ends with its last one, and its mappings with it

An unattached endpoint reaches all of guest memory while `bypass` is set, else nothing. One in a bypass domain reaches all.
A request gives a status and what has changed, for the shell to carry out; one that fails changes nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain

from aiovmm.devices.virtio.iommu.mappings import Mapping, Mappings
from aiovmm.devices.virtio.iommu.wire import (
    ATTACH_BYPASS,
    MAP_READ,
    MAP_WRITE,
    Attach,
    Detach,
    Map,
    Probe,
    Request,
    Status,
    Unmap,
    msi_region,
)
from aiovmm.errors import SnapshotError
from aiovmm.runtime.plain import Fields, State

__all__ = ["MAPPINGS_LIMIT", "Added", "Bound", "Domains", "Effect", "Outcome", "Removed"]

MAPPINGS_LIMIT = 1 << 18
"""Mappings in all domains of a VM: a guest that maps its pages one by one, again and again at other addresses, would have us
keep records of 100 bytes for each. Linux maps what is in flight: some ten thousand for a busy disk."""


@dataclass(frozen=True)
class Bound:
    """What `endpoint` reaches from now on: the mappings of `domain`; without one all memory (`bypass`) or nothing."""

    endpoint: int
    domain: int | None
    bypass: bool


@dataclass(frozen=True)
class Added:
    """A mapping is there."""

    domain: int
    mapping: Mapping


@dataclass(frozen=True)
class Removed:
    """Mappings are gone; they lay between `start` and `end` (included)."""

    domain: int
    start: int
    end: int


Effect = Bound | Added | Removed


@dataclass(frozen=True)
class Outcome:
    """The answer to a request: its status, properties (PROBE), and what has changed."""

    status: Status
    effects: tuple[Effect, ...] = ()
    properties: bytes = b""


@dataclass
class _Domain:
    bypass: bool
    endpoints: set[int] = field(default_factory=set)
    mappings: Mappings = field(default_factory=Mappings)


class Domains:
    """The IOMMU of one machine. `input_end` is the last address that can be mapped, `granule` the smallest page; `messages` are
    the first and the last address that messages go to, which are never memory, and never translated."""

    def __init__(
        self,
        *,
        input_end: int,
        messages: tuple[int, int],
        granule: int = 4096,
        bypass: bool = True,
        limit: int = MAPPINGS_LIMIT,
    ) -> None:
        self.input_end = input_end
        self.messages = messages
        self.granule = granule
        self.bypass = bypass
        self.limit = limit
        self.mapped = 0  # mappings in all domains
        self._attached: dict[int, int | None] = {}  # every endpoint, and its domain
        self._domains: dict[int, _Domain] = {}

    # -- what the machine does

    def add_endpoint(self, endpoint: int) -> Bound:
        """A device that the IOMMU stands in front of. Its id is the one that the firmware tables give it."""
        self._attached[endpoint] = None
        return Bound(endpoint, None, self.bypass)

    def remove_endpoint(self, endpoint: int) -> None:
        """It is there no more; its domain goes, if it was the last in it."""
        domain = self._attached.pop(endpoint)
        if domain is not None:
            self._leave(endpoint, domain)

    def domain_of(self, endpoint: int) -> int | None:
        """The domain that an endpoint is attached to."""
        return self._attached.get(endpoint)

    def exists(self, domain: int) -> bool:
        """Whether any endpoint is attached to it."""
        return domain in self._domains

    def mappings(self, domain: int) -> Iterable[Mapping]:
        """All mappings of a domain, sorted; none if it does not exist."""
        return self._domains[domain].mappings if domain in self._domains else ()

    def set_bypass(self, bypass: bool) -> tuple[Effect, ...]:
        """The driver writes the configuration (§5.13.4): it holds for all that are not attached, now and later."""
        if bypass == self.bypass:
            return ()
        self.bypass = bypass
        return tuple(Bound(e, None, bypass) for e, domain in self._attached.items() if domain is None)

    def reset(self) -> tuple[Effect, ...]:
        """The driver resets the device: no domains, no mappings. `bypass` stays (§5.13.5)."""
        attached = [e for e, domain in self._attached.items() if domain is not None]
        self._domains.clear()
        self.mapped = 0
        for endpoint in attached:
            self._attached[endpoint] = None
        return tuple(Bound(e, None, self.bypass) for e in attached)

    # -- for a snapshot

    def save(self) -> State:
        """Who is attached to which domain, and its mappings, 32 bytes each."""
        return {
            "bypass": self.bypass,
            "domains": [
                {
                    "number": number,
                    "bypass": domain.bypass,
                    "endpoints": sorted(domain.endpoints),
                    "mappings": domain.mappings.packed(),
                }
                for number, domain in self._domains.items()
            ],
        }

    def load(self, state: State) -> Iterator[Effect | None]:
        """Of an IOMMU with the same endpoints, none of which is attached: the driver's requests that lead there. It may be long,
        so it is done as far as it is iterated: nothing (None) has changed until all of it is known to be good, then what has.
        Raises SnapshotError."""
        fields = Fields(state, "IOMMU")
        bypass, domains = fields.flag("bypass"), fields.several("domains")
        trial = Domains(input_end=self.input_end, messages=self.messages, granule=self.granule, limit=self.limit)
        trial._attached = dict.fromkeys(self._attached)
        for request in chain.from_iterable(map(_requests, domains)):
            if (status := trial.handle(request).status) is not Status.OK:
                raise SnapshotError(f"IOMMU: {request} cannot have been: {status.name}")
            yield None
        fields.end()
        yield from self.set_bypass(bypass)
        self._attached, self._domains, self.mapped = trial._attached, trial._domains, trial.mapped
        for endpoint, domain in self._attached.items():
            if domain is not None:
                yield self._bound(endpoint, domain)
        for number, there in self._domains.items():
            yield from (Added(number, mapping) for mapping in there.mappings)

    # -- what the driver asks for

    def handle(self, request: Request) -> Outcome:
        """Carry a request out, or refuse it."""
        match request:
            case Map():
                return self._map(request)
            case Unmap():
                return self._unmap(request)
            case Attach():
                return self._attach(request)
            case Detach():
                return self._detach(request)
            case Probe():
                return self._probe(request)

    def _attach(self, r: Attach) -> Outcome:
        if any(r.reserved) or r.flags & ~ATTACH_BYPASS:
            return Outcome(Status.INVAL)  # §5.13.6.3.2
        if r.endpoint not in self._attached:
            return Outcome(Status.NOENT)
        bypass = bool(r.flags & ATTACH_BYPASS)
        domain = self._domains.get(r.domain)
        if domain is not None and domain.bypass != bypass:
            return Outcome(Status.INVAL)
        old = self._attached[r.endpoint]
        if old == r.domain:
            return Outcome(Status.OK)
        if old is not None:
            self._leave(r.endpoint, old)
        if domain is None:
            domain = self._domains[r.domain] = _Domain(bypass)
        domain.endpoints.add(r.endpoint)
        self._attached[r.endpoint] = r.domain
        return Outcome(Status.OK, (self._bound(r.endpoint, r.domain),))

    def _bound(self, endpoint: int, domain: int) -> Bound:
        bypass = self._domains[domain].bypass
        return Bound(endpoint, None if bypass else domain, bypass)

    def _detach(self, r: Detach) -> Outcome:
        if r.endpoint not in self._attached:
            return Outcome(Status.NOENT)
        if r.domain not in self._domains or self._attached[r.endpoint] != r.domain:
            return Outcome(Status.INVAL)
        self._leave(r.endpoint, r.domain)
        self._attached[r.endpoint] = None
        return Outcome(Status.OK, (Bound(r.endpoint, None, self.bypass),))

    def _leave(self, endpoint: int, number: int) -> None:
        domain = self._domains[number]
        domain.endpoints.discard(endpoint)
        if not domain.endpoints:
            self.mapped -= len(domain.mappings)
            del self._domains[number]

    def _map(self, r: Map) -> Outcome:
        if r.flags & ~(MAP_READ | MAP_WRITE) or r.end < r.start:  # whatever the domain: §5.13.6.5.2
            return Outcome(Status.INVAL)
        domain = self._domains.get(r.domain)
        if domain is None:
            return Outcome(Status.NOENT)
        if domain.bypass:
            return Outcome(Status.INVAL)
        aligned = not (r.start | r.end + 1 | r.physical) % self.granule
        if not aligned or r.end > self.input_end or r.physical + (r.end - r.start) >= 1 << 64:
            return Outcome(Status.RANGE)
        if domain.mappings.overlaps(r.start, r.end):
            return Outcome(Status.INVAL)
        if self.mapped >= self.limit:
            return Outcome(Status.NOMEM)
        mapping = Mapping(r.start, r.end, r.physical, r.flags)
        domain.mappings.add(mapping)
        self.mapped += 1
        return Outcome(Status.OK, (Added(r.domain, mapping),))

    def _unmap(self, r: Unmap) -> Outcome:
        if r.end < r.start:
            return Outcome(Status.INVAL)
        domain = self._domains.get(r.domain)
        if domain is None:
            return Outcome(Status.NOENT)
        if domain.bypass:
            return Outcome(Status.INVAL)
        if domain.mappings.splits(r.start, r.end):  # §5.13.6.6
            return Outcome(Status.RANGE)
        count, start, end = domain.mappings.remove(r.start, r.end)
        if not count:
            return Outcome(Status.OK)
        self.mapped -= count
        return Outcome(Status.OK, (Removed(r.domain, start, end),))

    def _probe(self, r: Probe) -> Outcome:
        if r.endpoint not in self._attached:
            return Outcome(Status.NOENT)
        return Outcome(Status.OK, properties=msi_region(*self.messages))


_MAPPING = struct.Struct("<QQQQ")  # start, end, physical, flags
_MAPPINGS_SIZE = MAPPINGS_LIMIT * _MAPPING.size


def _requests(fields: Fields) -> Iterator[Request]:
    """What makes a saved domain."""
    number, bypass = fields.number("number", 0, 0xFFFFFFFF), fields.flag("bypass")
    endpoints, mappings = fields.numbers("endpoints", high=0xFFFFFFFF), fields.data("mappings", most=_MAPPINGS_SIZE)
    fields.end()
    for endpoint in endpoints:
        yield Attach(number, endpoint, ATTACH_BYPASS if bypass else 0, b"")
    for start, end, physical, flags in _MAPPING.iter_unpack(mappings[: len(mappings) // _MAPPING.size * _MAPPING.size]):
        yield Map(number, start, end, physical, flags)
