"""How the driver and the device of a queue notify each other: kicks, which wake who waits for chains, and interrupts. Each side
says when it wants to be notified (VIRTIO 1.2 §2.7.7, §2.7.10): who waits asks for a kick and then looks at the ring once more.

    kick         eventfd ──► Bell ──► `due`, `kicked` ──► the turn of `serve`, or the coroutine in `wait`
    interrupt    `flush`, at once or with `flush_soon` once for all that a turn of the loop returns ──► `signal`
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from aiovmm.errors import StateError
from aiovmm.irq import IrqLine
from aiovmm.native import lib
from aiovmm.runtime.tasks import fail
from aiovmm.runtime.turns import next_turn
from aiovmm.virtqueue.bell import Bell
from aiovmm.virtqueue.chain import Chain
from aiovmm.virtqueue.features import EVENT_IDX
from aiovmm.virtqueue.serving import Serving, Turn

__all__ = ["NotifiedQueue"]


class NotifiedQueue:
    """This side of a `Queue`. One coroutine at a time waits on it."""

    def __init__(self, queue: Any, bell: Bell, interrupt: IrqLine, features: int, *, enabled: bool) -> None:
        """`queue` is a `struct avmm_queue *`; None where its ring is not in use."""
        self.enabled = enabled
        self.interrupt = interrupt
        self.interrupts = 0  # raised
        self.kicks = 0  # seen
        self._q = queue
        self._taken: deque[Chain] | None = None
        """Chains that are out of the ring, and that nobody has been handed: of who takes them one by one."""
        self._event_idx = bool(features & EVENT_IDX)  # then a kick is given once, without being asked not to go on
        self._bell = bell
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._serving: Serving | None = None
        self._listening = False
        self._after = 0  # chains in the ring that whoever waits knows of
        self._flush: asyncio.Handle | None = None
        self._closed = False

    # -- kicks

    async def wait(self, more_than: int = 0) -> None:
        """Until more than `more_than` chains are `offered`: a device that has put chains back, because they did not suffice,
        waits for further ones. A disabled queue waits for ever. The loop has a turn in any case: a driver may offer a chain
        whenever it sees that the ring was found empty."""
        taken = len(self._taken or ())
        if taken > more_than:
            return
        self._listen()
        self._after = in_ring = more_than - taken
        slept = False
        try:
            # enable_notify looks at the ring again after it has asked for kicks, so no kick is lost in between.
            while not self.enabled or not lib.avmm_queue_enable_notify_after(self._q, in_ring):
                slept = True
                self._waiter = self._loop.create_future()
                await self._waiter
        finally:
            self._waiter = None
        lib.avmm_queue_disable_notify(self._q)
        if not slept:
            await next_turn()

    async def serve(self, turn: Turn) -> None:
        """Call `turn` whenever there may be chains, straight from the loop's callbacks, until it wants to return. It does not
        wait, and bounds what it does; what it returns says how it goes on. Raises what it raises, StateError when closed."""
        self._listen()
        self._after = 0
        self._serving = Serving(self, turn)
        try:
            await self._serving.run()
        finally:
            self._serving = None

    def end_turn(self) -> bool:
        """Ask for a kick. False: there are chains already, and no kick will tell of them."""
        if not self.enabled or not lib.avmm_queue_enable_notify_after(self._q, 0):
            return True
        lib.avmm_queue_disable_notify(self._q)
        return False

    @property
    def kick_fd(self) -> int:
        """The eventfd of its kicks, which may be other queues' as well."""
        return self._bell.fd

    def _listen(self) -> None:
        if self._waiter is not None or self._serving is not None:
            raise StateError(f"two tasks wait on {self!r}")
        if self._closed:
            raise StateError(f"{self!r} is closed")
        if not self._listening:
            self._bell.join(self)
            self._listening = True

    def due(self) -> bool:
        """Whether somebody waits for chains that are in the ring."""
        if self._serving is None and self._waiter is None:
            return False
        return self._q is not None and bool(lib.avmm_queue_available(self._q) > self._after)

    def kicked(self) -> bool:
        """The driver has kicked (bell.py). True: a coroutine was woken."""
        self.kicks += 1
        if self._serving is not None:
            if not self._event_idx and self._q is not None:
                lib.avmm_queue_disable_notify(self._q)
            self._serving.kicked()
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
            return True
        return False

    # -- interrupts

    def flush_soon(self) -> None:
        """Call `flush` when the loop gets its turn, once for all that is pushed until then."""
        if self._flush is None:
            self._flush = self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Interrupt the driver if it wants that for what was pushed (EVENT_IDX or flags, §2.7.7, §2.7.10)."""
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        if self._q is not None and lib.avmm_queue_needs_interrupt(self._q):
            self.signal()

    def signal(self) -> None:
        """Interrupt the driver, who wants that: native code has asked it."""
        self.interrupts += 1
        self.interrupt.pulse()

    def _end(self) -> None:
        """Nobody is notified any more: who waits is told that."""
        self._closed = True
        if self._listening:
            self._bell.leave(self)
            self._listening = False
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        if self._waiter is not None:
            fail(self._waiter, StateError(f"{self!r} was closed"))
        if self._serving is not None:
            self._serving.fail(StateError(f"{self!r} was closed"))
