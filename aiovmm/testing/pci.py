"""A machine for PCI devices without KVM: records lines and doorbells, and accesses the bus as a guest's vCPU would."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from aiovmm.bus import Bus, Policy, Space
from aiovmm.errors import UsageError
from aiovmm.memory import AddressSpace
from aiovmm.pci.plan import Window
from aiovmm.pci.services import IntxLine, LineChange, Place
from aiovmm.runtime.worker import Worker

__all__ = ["ECAM_BASE", "MESSAGES", "MMIO32", "Doorbell", "RecordedIntxLine", "RecordedMsiLine", "RecordingServices"]


ECAM_BASE = 0xE800_0000
MMIO32 = Window(0xC000_0000, 640 << 20)
"""Where configuration space and 32-bit BARs are on a PC: plan_segments(1, ECAM_BASE, MMIO32, ...)."""
MESSAGES = 0xFEE0_0000, 0xFEEF_FFFF
"""The first and the last address that messages go to there."""


class RecordedMsiLine:
    """An MSI line that notes the messages it sends. It behaves as an irqfd does: masked, its eventfd keeps signals."""

    def __init__(self, name: str, deliver: Callable[[int, int], None] = lambda address, data: None) -> None:
        self.name = name
        self.place = Place()
        self._deliver = deliver
        self.address = 0
        self.data = 0
        self.masked = True
        self.closed = False
        self.messages: list[tuple[int, int]] = []
        self._fd: int | None = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    @property
    def fd(self) -> int | None:
        """A real eventfd; call `collect()` to have its signals sent."""
        return self._fd

    @property
    def pending(self) -> bool:
        """Signalled while masked."""
        return self.masked and self._signalled()

    def set(self, address: int, data: int, masked: bool) -> None:
        """Program the line; unmasking sends what its eventfd kept."""
        if self.closed:
            raise UsageError(f"{self.name} is closed")
        self.address, self.data, self.masked = address, data, masked
        self.collect()

    def collect(self) -> None:
        """Send once if the eventfd was signalled and the line is open."""
        if not self.masked and self._fd is not None and self._signalled():
            os.eventfd_read(self._fd)
            self._send()

    def close(self) -> None:
        """Close the eventfd."""
        self.closed = True
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _send(self) -> None:
        self.messages.append((self.address, self.data))
        self._deliver(self.address, self.data)

    def _signalled(self) -> bool:
        if self._fd is None:
            return False
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(0))


class RecordedIntxLine:
    """An interrupt pin that asks its handler, if there is one, at each rising level; `end` is the guest's end of interrupt."""

    def __init__(self, gsi: int, ended: Callable[[], None]) -> None:
        self.gsi = gsi
        self.asserted = False
        self.closed = False
        self.interrupts = 0
        self.handler: Callable[[], None] = lambda: None
        self._ended = ended

    def set_level(self, asserted: bool) -> None:
        """Assert or release it."""
        rising = asserted and not self.asserted
        self.asserted = asserted
        if rising:
            self.interrupts += 1
            self.handler()

    def end(self) -> None:
        """The guest ends the interrupt: the pin is released, and whoever still has a reason asserts it again."""
        if self.asserted:
            self.set_level(False)
            self._ended()

    def circuit(self) -> None:
        """None."""

    def close(self) -> None:
        """Release it."""
        self.set_level(False)
        self.closed = True


class Doorbell:
    """One registered ioeventfd."""

    def __init__(self, services: RecordingServices, space: Space, address: int, size: int, fd: int) -> None:
        self.space, self.address, self.size, self.fd = space, address, size, fd
        self._services = services

    def close(self) -> None:
        """Unregister."""
        if self in self._services.doorbells:
            self._services.doorbells.remove(self)


class RecordingServices:
    """PciServices for tests. `doorbells` and `lines` are what is registered now, `messages` what was sent without a line, as
    (address, data); `read` and `write` act as a vCPU."""

    def __init__(self, memory: AddressSpace, *, ioeventfds: bool = True) -> None:
        self.bus = Bus()
        self.memory = memory
        self.doorbells: list[Doorbell] = []
        self.lines: list[RecordedMsiLine] = []
        self.messages: list[tuple[int, int]] = []
        self.pins: list[RecordedIntxLine] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.waited = 0
        """Accesses that a vCPU would have waited for the event loop with."""
        self.worker: Worker | None = None
        """Makes the calls that may take long, if it is set."""
        self._ioeventfds = ioeventfds
        self._handlers: dict[tuple[int, int], Callable[[], None]] = {}

    def message(self, address: int, data: int, _place: Place) -> Callable[[], None]:
        """Notes it in `messages`."""
        return partial(self._send, address, data)

    def _send(self, address: int, data: int) -> None:
        self.messages.append((address, data))
        self._message(address, data)

    def msi_line(self, name: str, place: Place) -> RecordedMsiLine:
        """A new line, noted in `lines`."""
        line = RecordedMsiLine(name, self._message)
        line.place = place
        self.lines.append(line)
        return line

    def intx_line(self, ended: Callable[[], None], place: Place) -> IntxLine:
        """A new pin, noted in `pins`."""
        pin = RecordedIntxLine(16 + len(self.pins) % 8, ended)
        self.pins.append(pin)
        return pin

    def ioeventfd(self, space: Space, address: int, size: int, fd: int) -> Doorbell | None:
        """Register; raises UsageError where KVM says EEXIST."""
        if not self._ioeventfds:
            return None
        if any((d.space, d.address, d.size) == (space, address, size) for d in self.doorbells):
            raise UsageError(f"there is a doorbell at {address:#x} already")
        doorbell = Doorbell(self, space, address, size, fd)
        self.doorbells.append(doorbell)
        return doorbell

    def set_lines(self, changes: Sequence[LineChange]) -> None:
        """Program them one by one."""
        for change in changes:
            change.line.set(change.address, change.data, change.masked)

    def off_loop(
        self, work: Callable[[], None], then: Callable[[BaseException | None], None] | None = None
    ) -> Awaitable[None] | None:
        """All is done at once; or, while `worker` is set, when that has done it."""
        if self.worker is not None:
            return self.worker.submit(work, then)
        error: BaseException | None = None
        try:
            work()
        except BaseException as exc:
            error = exc
            raise
        finally:
            if then is not None:
                then(error)
        return None

    def create_task(self, coro: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        """Run it on the running loop."""
        task = asyncio.get_running_loop().create_task(coro, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def read(self, address: int, size: int, space: Space = Space.MMIO) -> bytes:
        """What a vCPU reads: shadow bytes where the policy says so, else the device.

        Raises AssertionError if a shadow differs from what the device says, or the device answers later (see `answer`).
        """
        data = self.answer(address, size, space)
        assert isinstance(data, bytes), "a vCPU would wait for that"
        return data

    def answer(self, address: int, size: int, space: Space = Space.MMIO) -> bytes | Awaitable[bytes]:
        """The same, or what the vCPU waits for."""
        rng = self.bus.find(space, address, size)
        if rng is None:
            return b"\xff" * size
        offset = address - rng.base
        fast = rng.fast
        if fast is None or not all(p & Policy.SHADOW_READ for p in fast.policy[offset : offset + size]):
            self.waited += 1
            return rng.device.read(offset, size)
        shadow = bytes(fast.shadow[offset : offset + size])
        truth = rng.device.read(offset, size)
        assert isinstance(truth, bytes), "what is shown at once is there at once"
        if shadow != truth:
            raise AssertionError(f"{rng.name} + {offset:#x}: shadow {shadow.hex()}, device {truth.hex()}")
        return shadow

    def write(self, address: int, data: bytes, space: Space = Space.MMIO) -> Awaitable[None] | None:
        """A vCPU's write: a doorbell if there is one, else the bus. The result is what the vCPU would wait for."""
        for bell in self.doorbells:
            if (bell.space, bell.address) == (space, address) and bell.size in (0, len(data)):
                os.eventfd_write(bell.fd, 1)
                return None
        self.waited += 1
        return self.bus.write(space, address, data)

    def on_message(self, address: int, data: int, handler: Callable[[], None]) -> None:
        """Call `handler` for each MSI with this address and data, as an interrupt controller would."""
        self._handlers[address, data] = handler

    def _message(self, address: int, data: int) -> None:
        handler = self._handlers.get((address, data))
        if handler is not None:
            handler()

    def close(self) -> None:
        """Close the eventfds of all lines."""
        for line in self.lines:
            line.close()
