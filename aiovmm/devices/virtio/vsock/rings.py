"""The rings of a live device: packets of the guest to the switch, what the switch has to send to the guest, and events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from aiovmm.devices.virtio.vsock.from_guest import FromGuest
from aiovmm.devices.virtio.vsock.packet import TRANSPORT_RESET
from aiovmm.devices.virtio.vsock.switch import Switch
from aiovmm.devices.virtio.vsock.to_guest import ToGuest
from aiovmm.errors import GuestError
from aiovmm.runtime.event import Event
from aiovmm.virtqueue.queue import Queue
from aiovmm.virtqueue.serving import Next

__all__ = ["EVENT", "RX", "TX", "Rings"]

RX, TX, EVENT = 0, 1, 2  # §5.10.2
PATIENCE = 3.0
"""Seconds in which a guest heeds that its connections are gone, before it is sent anything else: fewer than its callers have."""
_LOOKS = 20  # at whether it runs, meanwhile


class Rings:
    """See the module. Made at DRIVER_OK; of no use when `serve` has ended. `runs`: whether the guest does, which may be paused.
    `unheeded` is what the Rings before these left, where the guest goes on."""

    def __init__(
        self, queues: Sequence[Queue], switch: Switch, runs: Callable[[], bool] = lambda: True, unheeded: int = 0
    ) -> None:
        self.unheeded = unheeded
        """Event buffers that there are once the guest has heeded all that it was told; 0: it has."""
        self._runs = runs
        self._tx, self._event = queues[TX], queues[EVENT]
        self._switch = switch
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reset_due = Event()
        self._to_guest = ToGuest(queues[RX], switch, self._broken)
        self._from_guest = FromGuest(queues[TX], switch, self._to_guest.pump)

    async def serve(self) -> None:
        """Until cancelled. Raises GuestError for malformed chains."""
        self._to_guest.held = self.reset_due or bool(self.unheeded)
        self._switch.join_rings(self._to_guest.pump, self._to_guest.offer)
        self._to_guest.pump()  # what has come for the guest while nobody served it
        works = self._tx.serve(self._from_guest.turn), self._to_guest.refill(), self._serve_events(), self._broken
        tasks = [asyncio.ensure_future(work) for work in works]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                await task
        finally:
            self._switch.join_rings(None, None)
            self._to_guest.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def take_last(self) -> None:
        """What the guest has sent before its end, all of which is in the ring."""
        turns = self._tx.size
        with suppress(GuestError):  # it does not matter any more
            while turns and self._from_guest.turn() is Next.TURN:
                turns -= 1

    def transport_reset(self) -> None:
        """Tell the guest that its connections are gone (§5.10.6.7), as soon as it has a buffer for that. It is sent nothing until
        it has heeded that: it would take new connections for old ones, and forget them without a word."""
        self._to_guest.held = True
        self._reset_due.set()

    @property
    def reset_due(self) -> bool:
        """It has not been told yet."""
        return self._reset_due.is_set()

    async def _serve_events(self) -> None:
        while True:
            if self.reset_due:
                await self._tell()
            if self.unheeded:
                await self._heeded()
            if not self.reset_due:
                self._release()
                await self._reset_due.wait()

    async def _tell(self) -> None:
        chain = self._event.pop()
        if chain is None:  # others need not wait for a driver that does not ask
            self._release()
            chain = await anext(self._event)
        elif not self.unheeded:  # else it has more than one to give back
            self.unheeded = min(self._event.offered + 1, self._event.size)  # whatever its ring says
        chain.write(TRANSPORT_RESET)
        self._event.push(chain)
        self._reset_due.clear()

    async def _heeded(self) -> None:
        """Drivers give a buffer back when they have done what it says. A guest that stands still has its time when it goes on."""
        left, ran = _LOOKS, self._runs()
        while left:
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE / _LOOKS if ran else PATIENCE):
                    await self._event.wait(self.unheeded - 1)
                    break
            before, ran = ran, self._runs()
            left -= before and ran
        self.unheeded = 0

    def _release(self) -> None:
        if self._to_guest.held:
            self._to_guest.held = False
            self._to_guest.pump()
