"""The registers of PCI slots for hotplug, 8 ports a segment, as the DSDT reads and writes them. Pure.

    bytes 0 to 3, read    slots with something new in them, a bit each
                  written slots that the guest has let go of (_EJ0)
    bytes 4 to 7, read    slots that the guest is to let go of

What is read is forgotten. A guest can let go only of what it is asked for, once, and everything else it writes is nothing: its
vCPUs drop it, and read zeros, without an exit to the event loop, as long as nothing is asked of the segment.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from aiovmm.bus import FastPage, Policy
from aiovmm.runtime.plain import Fields, State

__all__ = ["SEGMENT_SIZE", "SlotRegisters"]

SEGMENT_SIZE = 8
_WIDTH = 4
_WANTED = 4
_IDLE = Policy.SHADOW_READ | Policy.IGNORE_WRITE
_SLOTS = 0xFFFF_FFFF


class SlotRegisters:
    """A BusDevice for `segments` of them. `on_eject(segment, slot)` empties a slot; the guest's write waits for the result."""

    def __init__(self, segments: int) -> None:
        self.on_eject: Callable[[int, int], Awaitable[None] | None] = lambda segment, slot: None
        self._added = [0] * segments
        self._wanted = [0] * segments
        self._asked = [0] * segments  # whether the guest has been told yet or not
        self._gone = [0] * segments  # that are empty, and of which the guest has not let go yet
        self.on_left: Callable[[int, int], None] = lambda segment, slot: None
        self.fast = FastPage(segments * SEGMENT_SIZE)
        self.fast.policy[:] = bytes([_IDLE]) * len(self.fast.policy)

    # -- the machine's side

    def added(self, segment: int, slot: int) -> None:
        """There is something new in a slot."""
        self._added[segment] |= 1 << slot
        self._settle(segment)

    def ask(self, segment: int, slot: int) -> None:
        """The guest is to let go of what is in a slot. Idempotent; once more reminds it."""
        self._wanted[segment] |= 1 << slot
        self._asked[segment] |= 1 << slot
        self._settle(segment)

    def gone(self, segment: int, slot: int) -> None:
        """The slot is empty, and the guest, which was not asked, is to look: `on_left(segment, slot)` is called when it has let
        go, and would not take what is there by then for the same."""
        self._wanted[segment] |= 1 << slot
        self._gone[segment] |= 1 << slot
        self.forget(segment, slot)

    def forget(self, segment: int, slot: int) -> None:
        """What was in a slot is not asked for any more."""
        self._added[segment] &= ~(1 << slot)
        self._asked[segment] &= ~(1 << slot)
        self._settle(segment)

    # -- the guest's side

    def read(self, offset: int, size: int) -> bytes:
        """The bytes that lie there, which are then zero."""
        return bytes(self._take(at) for at in range(offset, offset + size))

    def write(self, offset: int, data: bytes) -> Awaitable[None] | None:
        """Ejections. The result is done when all of them are; then it raises what failed of them."""
        segment, at = divmod(offset, SEGMENT_SIZE)
        if at >= _WIDTH:
            return None
        written = int.from_bytes(data[: _WIDTH - at], "little") << 8 * at
        let_go, left = written & self._asked[segment], written & self._gone[segment]
        self._gone[segment] &= ~left
        self._asked[segment] &= ~let_go
        self._wanted[segment] &= ~let_go
        self._settle(segment)
        if not let_go | left:
            return None
        from aiovmm.devices.hotplug.each import each  # for who is asked to let go of something

        slots = range(_WIDTH * 8)
        told = [partial(self.on_left, segment, slot) for slot in slots if left >> slot & 1]
        ejected = [partial(self.on_eject, segment, slot) for slot in slots if let_go >> slot & 1]
        return each([*told, *ejected])

    def _take(self, offset: int) -> int:
        segment, at = divmod(offset, SEGMENT_SIZE)
        register = self._wanted if at >= _WANTED else self._added
        shift = 8 * (at % _WIDTH)
        value = register[segment] >> shift & 0xFF
        register[segment] &= ~(0xFF << shift)
        self._settle(segment)
        return value

    def _settle(self, segment: int) -> None:
        """Whether the guest's accesses are worth an exit."""
        told = self._added[segment] or self._wanted[segment]
        policy = (0 if told else Policy.SHADOW_READ) | (
            0 if self._asked[segment] | self._gone[segment] else Policy.IGNORE_WRITE
        )
        at = segment * SEGMENT_SIZE
        self.fast.policy[at : at + SEGMENT_SIZE] = bytes([policy]) * SEGMENT_SIZE

    # -- state

    def save(self) -> State:
        """What a guest has not looked at yet. What is asked of it is asked here: it lets go of nothing elsewhere until it is
        asked again."""
        return {"added": list(self._added)}

    def load(self, state: State) -> None:
        """See runtime.plain.Saved."""
        fields = Fields(state, "slots")
        count = len(self._added)
        added = fields.numbers("added", count, high=_SLOTS)
        fields.end()
        self._added, self._wanted, self._asked, self._gone = added, [0] * count, [0] * count, [0] * count
        for segment in range(count):
            self._settle(segment)
