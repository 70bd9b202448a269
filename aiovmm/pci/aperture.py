"""What a host bridge forwards: which BAR may lie where, and which BAR answers when the guest makes two overlap.

The guest programs BARs as it likes. A BAR is decoded only if it lies whole in one of the bridge's windows (so never
over RAM, ECAM or an interrupt controller) and nothing that is decoded already overlaps it; the first comer keeps the
addresses. A BAR that loses answers nowhere, until the conflict is gone: then the oldest claim is served first.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

from aiovmm.bus import Space
from aiovmm.errors import UsageError
from aiovmm.pci.plan import SegmentPlan, Window
from aiovmm.runtime.dataclass import dataclass

__all__ = ["Aperture", "BarId", "Placement"]


class BarId(NamedTuple):
    """BAR `bar` of the function in `slot`."""

    slot: int
    bar: int


@dataclass(frozen=True)
class Placement:
    """An effect: from now on `owner` answers at `base`, or nowhere if that is None."""

    owner: BarId
    base: int | None


@dataclass(frozen=True)
class _Claim:
    space: Space
    base: int
    size: int

    def overlaps(self, other: _Claim) -> bool:
        return self.space == other.space and self.base < other.base + other.size and other.base < self.base + self.size


_BASE = attrgetter("base")


class Aperture:
    """The windows of one segment, with the initial addresses given out and the claims of its BARs."""

    def __init__(self, plan: SegmentPlan) -> None:
        self._plan = plan
        self._reserved: list[_Claim] = []
        self._given: dict[BarId, _Claim] = {}
        self._wanted: dict[BarId, _Claim] = {}  # insertion order is the order of claiming
        self._active: dict[BarId, _Claim] = {}

    def allocate(self, owner: BarId, space: Space, size: int, alignment: int, *, wide: bool) -> int:
        """An initial address for a BAR, first fit; `wide`: in the 64-bit window. Raises UsageError if there is no room."""
        window = self._window(space, wide=wide)
        base = self._free(window, size, alignment, [c for c in self._taken() if c.space == space])
        self._given[owner] = _Claim(space, base, size)
        return base

    def lend(self, size: int, alignment: int) -> int:
        """Addresses in the 64-bit window that are no BAR's, nor will be until `give_back`: not even one that the guest has moved
        there. Raises UsageError if there is no room."""
        claims = [*self._taken(), *self._wanted.values()]
        base = self._free(self._plan.mmio64, size, alignment, [c for c in claims if c.space is Space.MMIO])
        self.reserve(base, size)
        return base

    def give_back(self, base: int) -> None:
        """What was lent there may be BARs' again. Nothing if nothing was."""
        self._reserved = [c for c in self._reserved if c.base != base]

    def _taken(self) -> list[_Claim]:
        return [*self._given.values(), *self._reserved]

    def _free(self, window: Window, size: int, alignment: int, taken: Sequence[_Claim]) -> int:
        base = -(-window.base // alignment) * alignment
        for claim in sorted(taken, key=_BASE):
            end = claim.base + claim.size
            if base < end and claim.base < base + size:
                base = -(-end // alignment) * alignment
        if not window.holds(base, size):
            raise UsageError(f"PCI segment {self._plan.number} has no room for {size:#x} more bytes of BARs")
        return base

    def reserve(self, base: int, size: int) -> None:
        """Keep BARs out of [base, base + size) of the memory windows: something that is not a BAR lives there."""
        self._reserved.append(_Claim(Space.MMIO, base, size))

    def claim(self, owner: BarId, space: Space, base: int | None, size: int) -> list[Placement]:
        """`owner` is programmed to `base`, or to nowhere. Returns what changes, in the order it must be done."""
        want = None if base is None else _Claim(space, base, size)
        if want == self._wanted.get(owner):
            return []
        changes = []
        self._wanted.pop(owner, None)
        freed = self._active.pop(owner, None)
        if freed is not None:
            changes.append(Placement(owner, None))
        if want is not None:
            self._wanted[owner] = want
        waiting = self._wanted if freed is not None else [owner]
        for name in list(waiting):
            changes += self._try(name)
        return changes

    def save(self) -> tuple[list[BarId], list[BarId]]:
        """Whose claims there are, in the order of claiming, and which of them are served."""
        return list(self._wanted), list(self._active)

    def load(self, claims: dict[BarId, tuple[Space, int, int]], served: Sequence[BarId]) -> list[Placement]:
        """(space, base, size) of each claim, in order; those of `served` come first where they can. There are none yet."""
        self._wanted = {owner: _Claim(*claim) for owner, claim in claims.items()}
        return [change for owner in (*served, *claims) for change in self._try(owner)]

    def forget(self, owner: BarId) -> None:
        """Give the initial address of `owner` back. Its claim must be None by now."""
        self._given.pop(owner, None)

    def _try(self, owner: BarId) -> list[Placement]:
        want = self._wanted.get(owner)
        if want is None or owner in self._active or not self._forwarded(want):
            return []
        if any(want.overlaps(other) for other in (*self._active.values(), *self._reserved)):
            return []
        self._active[owner] = want
        return [Placement(owner, want.base)]

    def _forwarded(self, want: _Claim) -> bool:
        windows: Sequence[Window | None] = self._plan.windows if want.space is Space.MMIO else (self._plan.io,)
        return any(w is not None and w.holds(want.base, want.size) for w in windows)

    def _window(self, space: Space, *, wide: bool) -> Window:
        if space is Space.MMIO:
            return self._plan.mmio64 if wide else self._plan.mmio32
        if self._plan.io is None:
            raise UsageError(f"PCI segment {self._plan.number} has no window for I/O BARs")
        return self._plan.io
