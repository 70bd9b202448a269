"""The run loop and the event loop's exit handling in miniature: what a vCPU sees of a device with a FastPage.

Posted writes and noted reads wait in a ring until `drain`, as they do in production when the event loop is busy; a
synchronous access drains first, since the ring is in order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from aiovmm.bus import BatchDevice, BusDevice, FastPage, NotingDevice, Policy


class FastDevice(BusDevice, Protocol):
    @property
    def fast(self) -> FastPage: ...


@dataclass
class Exits:
    """How many accesses went each way."""

    sync: int = 0
    posted: int = 0
    shadow: int = 0
    ignored: int = 0


@dataclass
class Vcpu:
    """One guest processor in front of one device, which it accesses by `width` bytes where nothing else is said."""

    device: FastDevice
    width: int = 1
    exits: Exits = field(default_factory=Exits)
    ring: list[tuple[bool, int, bytes]] = field(default_factory=list)

    def read(self, offset: int, size: int = 0) -> int:
        size = size or self.width
        page = self.device.fast
        policies = page.policy[offset : offset + size]
        if all(p & Policy.SHADOW_READ for p in policies):
            self.exits.shadow += 1
            data = bytes(page.shadow[offset : offset + size])
            if any(p & Policy.NOTE_READ for p in policies):
                self.ring.append((False, offset, data))
            return int.from_bytes(data, "little")
        self.exits.sync += 1
        self._take()
        answer = self.device.read(offset, size)
        assert isinstance(answer, bytes), "nobody here waits for one"
        assert len(answer) == size
        self._end()
        return int.from_bytes(answer, "little")

    def write(self, offset: int, value: int, size: int = 0) -> None:
        size = size or self.width
        page = self.device.fast
        policies = page.policy[offset : offset + size]
        data = value.to_bytes(size, "little")
        same = data == page.shadow[offset : offset + size] and all(p & Policy.DROP_SAME for p in policies)
        if same or all(p & Policy.IGNORE_WRITE for p in policies):
            self.exits.ignored += 1
        elif all(p & Policy.POSTED_WRITE for p in policies):
            self.exits.posted += 1
            for i, p in enumerate(policies):
                if p & Policy.LATCH_WRITE:
                    page.shadow[offset + i] = data[i]
            self.ring.append((True, offset, data))
        else:
            self.exits.sync += 1
            self._take()
            assert self.device.write(offset, data) is None
            self._end()

    def drain(self) -> None:
        """The event loop gets round to what was posted."""
        if self.ring:
            self._take()
            self._end()

    def _take(self) -> None:
        ring, self.ring = self.ring, []
        for is_write, offset, data in ring:
            if is_write:
                self.device.write(offset, data)
            else:
                assert isinstance(self.device, NotingDevice)
                self.device.note_read(offset, data)

    def _end(self) -> None:
        if isinstance(self.device, BatchDevice):
            self.device.end_of_batch()
