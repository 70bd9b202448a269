"""A live virtqueue, the device's side: chains are taken and returned by native code, kicks wake a coroutine.

Two ways to serve it. For devices written in Python, one chain at a time:

    async for chain in queue:
        chain.write(answer(chain.read_all()))
        queue.push(chain)

For hot devices, whole batches as native arrays, at a cost in Python for each batch and not for each request:

    async for batch in queue.batches():          # batch.count chains in batch.chains, their segments in batch.iov
        ...                                      # hand both to native code
        queue.push_many(heads, lengths, n)

A turn that never waits can be a plain function, called as soon as the driver kicks: `await queue.serve(turn)`.

What listens to the kick eventfd goes with `close()`; the eventfd itself stays the transport's, which closes it later, and may be
other queues' as well (bell.py). A device that hands the queue on (vhost) has `own_kicks`, uses `config`,
`kick_fd` and `interrupt`, and never waits.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from aiovmm.errors import GuestError, StateError
from aiovmm.irq import IrqLine
from aiovmm.memory import AddressSpace
from aiovmm.native import lib
from aiovmm.runtime.dataclass import replace
from aiovmm.runtime.turns import next_turn
from aiovmm.virtqueue.batch import Batch, Batches
from aiovmm.virtqueue.bell import Bell
from aiovmm.virtqueue.chain import Chain
from aiovmm.virtqueue.config import QueueConfig, QueueCounters, QueuePosition
from aiovmm.virtqueue.notification import NotifiedQueue
from aiovmm.virtqueue.ring import close_ring, open_ring, position_of, ring_stands, what_is_wrong

__all__ = ["Queue"]

_PIECES = 2048  # segments of chains taken at once: each becomes an object, so more would keep the loop busy for long
_PIECES_A_TURN = 128  # of a chain that counts for one in the next line
_DRAIN = 64  # chains handed out before the loop gets a turn, or the queue's size if that is less


class Queue(NotifiedQueue):
    """One live queue. Made by `activate`; of no use after `close`. How its two sides notify each other is in the base class."""

    def __init__(
        self,
        config: QueueConfig,
        memory: AddressSpace,
        *,
        index: int,
        features: int,
        bell: Bell,
        interrupt: IrqLine,
        position: QueuePosition | None = None,
    ) -> None:
        self._ring = open_ring(config, memory, features, position) if config.ready else None
        queue = self._ring.queue if self._ring is not None else None
        super().__init__(queue, bell, interrupt, features, enabled=config.ready)
        self.config = replace(config)  # the transport's own changes when the driver resets
        self.memory = memory
        self._table = memory.table
        self.index = index
        self.features = features
        self.size = config.size
        self._out: dict[Chain, None] = {}  # handed out and not returned, in order
        self._budget = self._drain = min(self.size, _DRAIN)
        self._batch: Batch | None = None
        self._position = position or QueuePosition()
        self._moved = (0, 0)

    @classmethod
    def activate(
        cls,
        config: QueueConfig,
        memory: AddressSpace,
        *,
        index: int,
        features: int,
        kick_fd: int | Bell,
        interrupt: IrqLine,
        position: QueuePosition | None = None,
    ) -> Queue:
        """Check the configuration and resolve the rings. `kick_fd` is a non-blocking eventfd, or the Bell of one that several
        queues share; `position` resumes a stopped queue. Raises ChainError or GuestFault if the driver's configuration is not
        usable."""
        if config.ready:
            config.check()
        return cls(
            config,
            memory,
            index=index,
            features=features,
            bell=kick_fd if isinstance(kick_fd, Bell) else Bell(kick_fd),
            interrupt=interrupt,
            position=position,
        )

    def __repr__(self) -> str:
        return f"<Queue {self.index}, {self.size} entries{'' if self._usable else ', off'}>"

    # -- one chain at a time -------------------------------------------------------------------------------------------

    def pop(self) -> Chain | None:
        """The next chain, or None. Raises ChainError or GuestFault for a malformed one, which is returned unused."""
        taken = self._taken or self._refill()
        if not taken:
            return None
        chain = taken.popleft()
        self._out[chain] = None
        return chain

    def put_back(self, chain: Chain) -> None:
        """Undo a `pop`: the chain will be the next that is handed out."""
        if chain.done or chain.owner is not self or chain not in self._out:
            raise StateError(f"{chain!r} was returned already, or is not of {self!r}")
        del self._out[chain]
        chain.rewind()
        assert self._taken is not None, "it was taken from there"
        self._taken.appendleft(chain)

    def push(self, chain: Chain, written: int | None = None) -> None:
        """Return a chain, with the number of bytes written from its start (default: what `chain.write` counted).

        The driver sees it at once; the interrupt comes at the end of the batch, when the loop gets its turn."""
        if written is None:
            written = chain.written
        if chain.done or chain.owner is not self:
            raise StateError(f"{chain!r} was returned already, or is not of {self!r}")
        if not 0 <= written <= chain.writable_size:
            raise StateError(f"{written} bytes cannot have been written to {chain!r}")
        if lib.avmm_queue_push_one(self._live(), chain.head, written) < 0:
            raise StateError(f"{chain!r} is not in flight on {self!r}")
        chain.done = True
        self._out.pop(chain, None)
        self.flush_soon()

    def __aiter__(self) -> Queue:
        """Chains, for ever, as the driver offers them."""
        return self

    async def __anext__(self) -> Chain:
        """The next chain, when there is one. Raises as `pop`."""
        if self._budget == 0:
            # Bounds what one guest can keep the loop busy with, however fast it refills the ring.
            self._budget = self._drain
            self.flush()
            await next_turn()
        while (chain := self.pop()) is None:
            self.flush()
            await self.wait()
            self._budget = self._drain
        self._budget = max(0, self._budget - 1 - (len(chain.readable) + len(chain.writable)) // _PIECES_A_TURN)
        return chain

    def charge(self, chains: int) -> None:
        """What the last chain asked for was as much work as `chains` more: the loop has its turn so much earlier."""
        self._budget = max(0, self._budget - chains)

    def _refill(self) -> deque[Chain] | None:
        if self._batch is None:
            limit = (
                max(_PIECES, self._q.max_chain + 4) if self._usable else _PIECES
            )  # a piece for each descriptor at least
            self._batch = Batch(self._drain, 256, addresses=True, limit=limit)
        if self.pop_batch(self._batch):
            self._taken = deque(self._batch.unpack(self.memory, self))
        return self._taken

    # -- batches -------------------------------------------------------------------------------------------------------

    def pop_batch(self, batch: Batch) -> int:
        """Take all available chains, as far as they fit, into `batch`; how many. Raises ChainError or GuestFault."""
        if not self.enabled:
            return 0
        n = batch.take(self._live(), self._table)
        if n < 0:
            raise self.malformed(batch.error)
        return n

    def put_back_batch(self, count: int) -> None:
        """Undo the last `count` pops of `pop_batch`."""
        if lib.avmm_queue_put_back(self._live(), count) < 0:
            raise StateError(f"{count} chains are not in flight on {self!r}")

    def push_many(self, heads: Any, lengths: Any, count: int, *, notify: bool = True) -> None:
        """Return `count` chains at once; `heads` is uint16_t[], `lengths` uint32_t[] (bytes written). Interrupts if the
        driver wants it, unless `notify` is false (call `flush` later)."""
        if lib.avmm_queue_push(self._live(), heads, lengths, count) < 0:
            raise StateError(f"{count} chains that are not in flight on {self!r}")
        if notify:
            self.flush()

    def finish_batch(self, unused: int, heads: Any, lengths: Any, count: int) -> None:
        """The end of a batch in one call: `put_back_batch(unused)`, then `push_many(heads, lengths, count)`."""
        wanted = lib.avmm_queue_finish(self._live(), unused, heads, lengths, count)
        if wanted < 0:
            raise StateError(f"{unused} + {count} chains that are not in flight on {self!r}")
        if wanted:
            self.signal()

    def batches(self, batch: Batch | None = None) -> Batches:
        """Batches of at least one chain, for ever; the loop gets a turn between two. The same object each time."""
        if batch is None:
            batch = Batch(self.size, 4 * self.size)
        return Batches(self, batch)

    def malformed(self, error: Any) -> GuestError:
        """What to raise for the `struct avmm_ring_error *` of a chain that was popped here, or by native code of a device. The
        driver gets the head back, unused, where there is one to give."""
        head = None if error.head < 0 else int(error.head)
        if head is not None and error.code != lib.AVMM_RING_NO_ROOM:
            lib.avmm_queue_push_one(self._q, head, 0)
            self.flush()
        return what_is_wrong(error)

    # -- life ----------------------------------------------------------------------------------------------------------

    @property
    def native(self) -> Any:
        """`struct avmm_queue *` for native code of a device (see native/src/ring.h). Raises StateError when disabled."""
        return self._live()

    @property
    def offered(self) -> int:
        """Chains that the driver has given and nobody has been handed."""
        return len(self._taken or ()) + (lib.avmm_queue_available(self._live()) if self.enabled else 0)

    @property
    def in_flight(self) -> int:
        """Chains taken and not returned."""
        return 0 if self._ring is None else (self._q.last_avail - self._q.used_idx) & 0xFFFF

    @property
    def counters(self) -> QueueCounters:
        """What has happened since activation; also after `close`."""
        if self._ring is not None:
            self._moved = int(self._q.popped), int(self._q.pushed)
        return QueueCounters(*self._moved, self.kicks, self.interrupts)

    @property
    def position(self) -> QueuePosition:
        """Where the rings stand, or stood at `close`. A queue can be resumed from it, and has then again what was handed
        out one by one and not returned; `lost` are further chains."""
        if self._ring is None:
            return self._position
        heads = [chain.head for chain in (*self._out, *(self._taken or ()))]
        return position_of(self._q, self.size, heads)

    @property
    def lost(self) -> int:
        """Chains that were taken in batches, or by native code, and not returned: whoever resumes the queue has them no more."""
        position = self.position
        return position.in_flight - len(position.again)

    def uses(self, start: int, end: int) -> bool:
        """Whether a part of the rings lies at the device's addresses [start, end]."""
        return self._usable and any(at <= end and start < at + size for at, size in self.config.parts)

    def check_rings(self) -> None:
        """The translation has changed. Raises GuestFault if it does not have the rings where they were."""
        if self._ring is not None:
            ring_stands(self._ring, self.config, self.memory)

    def close(self) -> None:
        """Stop listening and let go of guest memory. Idempotent; the kick eventfd may be closed after this."""
        if self._closed:
            return
        self._position = self.position
        self._moved = self.counters.popped, self.counters.pushed
        self._end()
        self._taken = None
        self._out.clear()
        if self._ring is not None:
            close_ring(self._ring)
        self._batch = self._ring = None
        self._q = None  # native code refuses it, where NULL would be followed

    @property
    def _usable(self) -> bool:
        return self._ring is not None

    def _live(self) -> Any:
        if self._ring is None:
            raise StateError(f"{self!r} is not in use")
        return self._q
