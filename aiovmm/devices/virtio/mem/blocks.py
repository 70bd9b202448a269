"""Which blocks of the region are plugged, and what becomes of a request (VIRTIO 1.2 §5.15.6). Pure.

PLUG        ACK if none of them is plugged and the total stays within what is requested (else NACK)
UNPLUG      ACK if all of them are plugged
UNPLUG_ALL  ACK
STATE       plugged, unplugged or mixed
"""

from __future__ import annotations

from aiovmm.devices.virtio.mem.protocol import BLOCK_SIZE, Answer, Kind, Request, Sizes
from aiovmm.errors import SnapshotError
from aiovmm.runtime.dataclass import dataclass
from aiovmm.runtime.plain import Fields, State

__all__ = ["Blocks", "Outcome"]

_PLUGGED, _UNPLUGGED, _MIXED = 0, 1, 2
_IN, _OUT = b"\1", b"\0"


@dataclass(frozen=True)
class Outcome:
    """What to answer, and which blocks have no memory any more: those from `first` on whose byte in `freed` is 1; or how many
    have come there."""

    answer: Answer
    state: int = 0
    first: int = 0
    freed: bytes | bytearray = b""
    came: int = 0


class Blocks:
    """Of a region of `size` bytes; all of them unplugged, and none requested."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.start = 0  # guest-physical
        self.requested = 0
        self._plugged = bytearray(size // BLOCK_SIZE)
        self._there = 0  # of them: a region may have millions, and whoever asks is answered at once

    @property
    def plugged(self) -> int:
        """Bytes."""
        return self._there * BLOCK_SIZE

    @property
    def map(self) -> bytes:
        """A 1 for each that is plugged."""
        return bytes(self._plugged)

    @property
    def sizes(self) -> Sizes:
        """As the driver is told."""
        return Sizes(self.start, self.size, self.plugged, self.requested)

    def clear(self) -> None:
        """All of it is unplugged; what is requested stays."""
        self._plugged, self._there = bytearray(len(self._plugged)), 0

    def looked_at(self, request: Request) -> int:
        """How many blocks `handle` goes through."""
        if request.kind is Kind.UNPLUG_ALL:
            return len(self._plugged) if self._there else 0
        return request.blocks

    def handle(self, request: Request) -> Outcome:
        """Carry it out, or refuse it. What is freed must have no memory any more before the driver is answered."""
        if request.kind is Kind.UNPLUG_ALL:
            if not self._there:
                return Outcome(Answer.ACK)
            freed = self._plugged
            self.clear()
            return Outcome(Answer.ACK, freed=freed)
        span = self._span(request)
        if span is None:
            return Outcome(Answer.ERROR)
        there = self._plugged.count(_IN, span.start, span.stop)
        if request.kind is Kind.STATE:
            state = _PLUGGED if there == request.blocks else _MIXED if there else _UNPLUGGED
            return Outcome(Answer.ACK, state)
        if request.kind is Kind.PLUG:
            return self._plug(request, span, there)
        if there < request.blocks:
            return Outcome(Answer.ERROR)
        self._plugged[span] = _OUT * request.blocks
        self._there -= there
        return Outcome(Answer.ACK, first=span.start, freed=_IN * request.blocks)

    def _plug(self, request: Request, span: slice, there: int) -> Outcome:
        if there:
            return Outcome(Answer.ERROR)
        if self.plugged + request.blocks * BLOCK_SIZE > self.requested:
            return Outcome(Answer.NACK)
        self._plugged[span] = _IN * request.blocks
        self._there += request.blocks
        return Outcome(Answer.ACK, first=span.start, came=request.blocks)

    def take_back(self, first: int, count: int) -> None:
        """Blocks that have just come are not to be had after all."""
        self._plugged[first : first + count] = _OUT * count
        self._there -= count

    def _span(self, request: Request) -> slice | None:
        first, rest = divmod(request.address - self.start, BLOCK_SIZE)
        last = first + request.blocks
        if rest or not request.blocks or not 0 <= first < last <= len(self._plugged):
            return None
        return slice(first, last)

    def save(self) -> State:
        """For a snapshot: where it is, what is plugged and requested."""
        return {"start": self.start, "requested": self.requested, "plugged": bytes(self._plugged)}

    def load(self, state: State) -> None:
        """See runtime.plain.Saved."""
        fields = Fields(state, "mem")
        start, requested = fields.number("start"), fields.number("requested", high=self.size)
        plugged = fields.data("plugged", len(self._plugged))
        fields.end()
        if start % BLOCK_SIZE or requested % BLOCK_SIZE or plugged.strip(_IN + _OUT):
            raise SnapshotError("mem: its blocks are not whole")
        self.start, self.requested, self._plugged[:] = start, requested, plugged
        self._there = plugged.count(_IN)
