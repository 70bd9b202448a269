"""A host device behind the virtual IOMMU: what its guest maps there is mapped in the IOMMU of the host, and nothing else.

What comes and goes is noted, and carried out in a thread by `revalidate`, which the answer to the guest's request waits for:
the host locks each page, and waits for its IOMMU to forget it.
The host tells nobody of accesses that it has not translated, so there are no fault events of such a device.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from aiovmm.errors import GuestFault, HostError
from aiovmm.memory import GuestMemory
from aiovmm.runtime.tasks import finish
from aiovmm.runtime.worker import Worker
from aiovmm.vfio.space import AddressSpace, Reachable, regions_of

__all__ = ["FollowedDomain", "Follower", "MappedPiece"]

_READ, _WRITE = 1, 2


class MappedPiece(Protocol):
    """`size` bytes at the device's address `base` are guest memory at `gpa`; `perm`: 1 may be read, 2 written."""

    @property
    def base(self) -> int:
        """An address of the device's."""

    @property
    def size(self) -> int:
        """In bytes."""

    @property
    def gpa(self) -> int:
        """A guest-physical address."""

    @property
    def perm(self) -> int:
        """Bits: 1 may be read, 2 written."""


class _Region(NamedTuple):
    """A piece of memory that the device reaches by its own address."""

    base: int
    size: int
    gpa: int
    perm: int


class FollowedDomain(Protocol):
    """A domain of the virtual IOMMU."""

    followers: dict[object, Any]

    @property
    def pieces(self) -> Iterable[MappedPiece]:
        """All that is mapped now, whatever becomes of it until somebody looks."""


_Pieces = Iterable[MappedPiece]
_Wanted = dict[tuple[int, int], tuple[int, int]]  # (address, bytes) of the device -> guest-physical address, rights


class Follower:
    """Keeps `space` as the virtual IOMMU says, until `aclose`. `on_error` hears what the host refuses: the device then lacks
    it."""

    def __init__(
        self,
        memory: GuestMemory,
        space: AddressSpace,
        on_error: Callable[[Exception], None],
        label: str = "vfio",
        reachable: Callable[[], Iterable[Reachable]] | None = None,
    ) -> None:
        """`reachable`: what there is of `memory`, for a device that reaches all of it; by default its regions."""
        self._memory = memory
        self._reachable = reachable or (lambda: regions_of(memory))
        self._space = space
        self._on_error = on_error
        self._domain: FollowedDomain | None = None
        self._bypass = False
        self._noted: list[tuple[_Pieces, _Pieces]] = []  # what has gone and come since the last look, in order
        self._rebound = True  # all is to be compared
        self._mapped: _Wanted = {}  # touched by the thread, or while there is none
        self._working = asyncio.Lock()
        # a thread of its own: to lock all of memory takes seconds, and doorbells need not wait for it
        self._thread = Worker(f"{label} dma")
        self._closed = False
        self._reported = False
        self._loop = asyncio.get_running_loop()

    # -- what the virtual IOMMU does

    def bind(self, domain: FollowedDomain | None, *, bypass: bool = False) -> None:
        """From the next `revalidate` on: `domain`, or without one all of memory (`bypass`) or none of it."""
        if self._domain is not None:
            self._domain.followers.pop(self, None)
        self._domain, self._bypass, self._rebound = domain, bypass and domain is None, True
        if domain is not None:
            domain.followers[self] = self

    def added(self, pieces: _Pieces) -> None:
        """The domain has got these."""
        self._noted.append(((), pieces))

    def removed(self, pieces: _Pieces) -> None:
        """The domain has lost these."""
        self._noted.append((pieces, ()))

    def uses(self, start: int, end: int) -> bool:
        """Whether there is anything to carry out."""
        return bool(self._noted) or self._working.locked()

    async def revalidate(self) -> None:
        """Be as the virtual IOMMU says. Never raises."""
        async with self._working:
            while not self._closed and (self._rebound or self._noted):
                if self._rebound:
                    work = partial(self._compare, self._wanted())
                else:
                    noted, self._noted = self._noted, []
                    work = partial(self._follow, noted)
                await finish(self._thread.submit(work))

    # -- what the machine does

    async def memory_came(self) -> None:
        """There is some more: a device that reaches all of memory reaches it, too. Never raises."""
        self._rebound = self._rebound or self._domain is None
        await self.revalidate()

    async def forget(self, ranges: Sequence[tuple[int, int]]) -> None:
        """There is no memory any more at these (address, bytes): nothing of them is mapped, whatever the guest mapped. Never
        raises."""
        async with self._working:
            await finish(self._thread.submit(partial(self._unmap_memory, ranges)))

    async def aclose(self) -> None:
        """Follow no more, and wait for what is being carried out; what is mapped is the space's to unmap. Idempotent."""
        self._closed = True
        self.bind(None)
        await finish(self._thread.aclose())
        self._mapped.clear()

    # -- the host's side

    def _wanted(self) -> _Pieces:
        """All that is to be mapped, with nothing of what is noted still to come."""
        self._rebound, self._noted = False, []
        if self._domain is not None:
            return self._domain.pieces
        if not self._bypass:
            return ()
        return [_Region(p.gpa, p.size, p.gpa, _READ | (0 if p.readonly else _WRITE)) for p in self._reachable()]

    def _compare(self, pieces: _Pieces) -> None:
        """In a thread: there may be very many."""
        wanted, mapped = _as_wanted(pieces), self._mapped
        gone = {key: value for key, value in mapped.items() if wanted.get(key) != value}
        self._carry_out(gone, {key: value for key, value in wanted.items() if mapped.get(key) != value})

    def _follow(self, changes: list[tuple[_Pieces, _Pieces]]) -> None:
        for gone, new in changes:
            self._carry_out(_as_wanted(gone), _as_wanted(new))

    def _carry_out(self, gone: _Wanted, new: _Wanted) -> None:
        """Unmap, then map. What the host refuses counts as done, and `on_error` hears of it."""
        for address, size in gone:
            try:
                if self._mapped.pop((address, size), None) is not None:
                    self._space.unmap_range(address, size)
            except HostError as exc:
                self._report(exc)
        for (address, size), (gpa, perm) in new.items():
            self._mapped[address, size] = gpa, perm
            try:
                if perm:
                    self._space.map_range(address, size, self._memory.host_address(gpa, size), perm)
            except HostError as exc:
                self._report(exc)
            except GuestFault:  # the guest has mapped what went since
                del self._mapped[address, size]

    def _unmap_memory(self, ranges: Sequence[tuple[int, int]]) -> None:
        """What is mapped of these."""
        for start, length in ranges:
            end = start + length
            there = [(at, size) for (at, size), (gpa, _) in self._mapped.items() if gpa < end and start < gpa + size]
            self._carry_out(dict.fromkeys(there, (0, 0)), {})

    def _report(self, error: HostError) -> None:
        """Once: a guest can bring it about as often as it likes."""
        if not self._reported:
            self._reported = True
            self._loop.call_soon_threadsafe(self._on_error, error)


def _as_wanted(pieces: _Pieces) -> _Wanted:
    return {(piece.base, piece.size): (piece.gpa, piece.perm) for piece in pieces}
