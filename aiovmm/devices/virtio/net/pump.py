"""The coroutines that move frames, one for each queue. Python decides when; native code moves a batch a call."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

from aiovmm.devices.virtio.net.port import Port
from aiovmm.devices.virtio.net.watch import FdWatch
from aiovmm.errors import ChainError
from aiovmm.native import ffi, lib
from aiovmm.virtqueue.batch import Batch
from aiovmm.virtqueue.queue import Queue

__all__ = ["Receiver", "Transmitter"]

Ended = Callable[[Port, OSError], None]

# What one guest may do to the loop in a turn. A segmented packet costs the host's network stack some 20 us.
_TURN_BYTES = 512 << 10
_TURN_FRAMES = 64
# Receive chains are looked at before it is known how many packets there are. Few suffice for a trickle, at less cost.
_RX_CHAINS = 256
_RX_FEW = 64
_PATIENCE = 0.1  # seconds that a packet waits for a driver to post more buffers


class _Pump:
    def __init__(self, queue: Queue, port: Port, watch: FdWatch, on_end: Ended, chains: int) -> None:
        self._queue = queue
        self._port = port
        self._watch = watch
        self._on_end = on_end
        self._batch = Batch(min(chains, queue.size), 4 * min(chains, queue.size))
        self._heads: Any = ffi.new("uint16_t[]", self._batch.max_chains)
        self._lens: Any = ffi.new("uint32_t[]", self._batch.max_chains)
        self._used: Any = ffi.new("uint32_t *")

    def _turn(self, move: Callable[..., int], state: Any) -> tuple[int, int, int]:
        """One batch: the native status, the chains that were there, and how many of them were used."""
        queue, batch = self._queue, self._batch
        n = queue.pop_batch(batch)
        status = move(state, batch.chains, n, batch.iov, _TURN_BYTES, self._heads, self._lens, self._used)
        used = int(self._used[0])
        if status == lib.AVMM_NET_BAD:
            bad = int(batch.chains[used].head)
        if n:
            queue.finish_batch(n - used, self._heads, self._lens, used)
        if status == lib.AVMM_NET_BAD:
            raise ChainError("it has no room for a header, or buffers of the other direction", bad)
        return status, n, used

    def _ended(self, error: int) -> None:
        if self._port.ended is None:
            text = os.strerror(error) if error else "the other end has closed"
            self._port.ended = OSError(error, text)
            self._on_end(self._port, self._port.ended)


class Receiver(_Pump):
    """From the host into the guest's buffers."""

    def __init__(self, queue: Queue, port: Port, watch: FdWatch, on_end: Ended) -> None:
        super().__init__(queue, port, watch, on_end, _RX_CHAINS)
        self._all = self._batch.max_chains
        self._few = min(_RX_FEW, self._all)

    async def run(self) -> None:
        """Until cancelled, or until the other end has gone. Raises ChainError, GuestFault."""
        rx = self._port.rx
        while self._port.ended is None:
            limit = self._batch.max_chains
            status, n, used = self._turn(lib.avmm_net_receive, rx)
            self._batch.max_chains = self._few if used < self._few // 2 and not rx.pending else self._all
            if status == lib.AVMM_NET_WAIT:
                await self._watch.readable()
            elif status == lib.AVMM_NET_ROOM and not used and (n < limit or limit == self._all):
                await self._room(n)
            elif status == lib.AVMM_NET_ENDED:
                self._ended(rx.error)
            else:
                await asyncio.sleep(0)
        self._watch.ignore()

    async def _room(self, held: int) -> None:
        """`held` chains are too few: wait for the driver, unless it has nothing better to give; then the packet is lost."""
        queue, rx = self._queue, self._port.rx
        if rx.pending and queue.enabled:
            available = lib.avmm_queue_available(queue.native)
            # A driver with half of its ring filled is not short of buffers: they are too small, and waiting would be for ever.
            if held < available or 2 * held >= queue.size:
                rx.pending = 0
                rx.dropped += 1
                await asyncio.sleep(0)
                return
        self._watch.ignore()
        try:
            async with asyncio.timeout(_PATIENCE if rx.pending else None):
                await queue.wait(held)
        except TimeoutError:
            rx.pending = 0
            rx.dropped += 1


class Transmitter(_Pump):
    """From the guest to the host."""

    def __init__(self, queue: Queue, port: Port, watch: FdWatch, on_end: Ended) -> None:
        super().__init__(queue, port, watch, on_end, _TURN_FRAMES)

    async def run(self) -> None:
        """Until cancelled. Once the other end has gone frames are dropped. Raises ChainError, GuestFault."""
        tx, sent = self._port.tx, 0
        while True:
            status, n, used = self._turn(lib.avmm_net_send, tx)
            sent += used
            if status == lib.AVMM_NET_WAIT:
                await self._watch.writable()
            elif status == lib.AVMM_NET_ENDED:
                tx.discard = True
                tx.left_at = tx.left_end = 0
                self._ended(tx.error)
                await asyncio.sleep(0)
            elif used < n or n == self._batch.max_chains or sent >= _TURN_FRAMES:
                sent = 0
                await asyncio.sleep(0)
            else:  # the ring was empty: ask for a kick at once, which goes on without one if there are frames again
                await self._queue.wait()
