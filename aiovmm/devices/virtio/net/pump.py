"""The coroutines that move frames, one for each queue. Python decides when; native code moves a batch a call."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

from aiovmm.devices.limits import Gate, Limiter
from aiovmm.devices.virtio.net.port import Port
from aiovmm.devices.virtio.net.watch import FdWatch
from aiovmm.errors import ChainError, StateError
from aiovmm.native import ffi, lib, owners
from aiovmm.runtime.turns import next_turn
from aiovmm.virtqueue.batch import Batch
from aiovmm.virtqueue.queue import Queue
from aiovmm.virtqueue.serving import Next

__all__ = ["Receiver", "Transmitter"]

Ended = Callable[[Port, OSError], None]

# What one guest may do to the loop in a call. A segmented packet costs the host's network stack some 20 us.
_TURN_BYTES = 512 << 10
_TURN_FRAMES = 64
_TURN_CALLS = 4  # in a turn, at most: a further one only after a call that the driver's wish for an interrupt has ended
_RX_CHAINS = 256  # at most; they are taken a few at a time, as packets keep coming
# Seconds that a packet waits for a driver to post more buffers. A guest that is not run for a while, on a host with more guests
# than processors, is no driver that is short of buffers.
_PATIENCE = 3.0

_WAIT = lib.AVMM_NET_WAIT
_MORE = lib.AVMM_NET_MORE
_ROOM = lib.AVMM_NET_ROOM
_ENDED = lib.AVMM_NET_ENDED
_BAD = lib.AVMM_NET_BAD


class _Pump:
    def __init__(self, queue: Queue, port: Port, watch: FdWatch, on_end: Ended, limiter: Limiter, chains: int) -> None:
        self._queue = queue
        self._port = port
        self._watch = watch
        self._on_end = on_end
        self._gate = Gate(limiter)
        self._held = False  # by the rate limit
        self._status = _MORE  # of the last turn
        self._batch = batch = Batch(min(chains, queue.size), 4 * min(chains, queue.size))
        self._turn = turn = ffi.new("struct avmm_net_turn *")
        turn.max_iov, turn.budget = batch.max_iov, _TURN_BYTES
        owners.link(turn, chains=batch.chains, iov=batch.iov, mem=queue.memory.table)
        if queue.enabled:  # else there are no chains
            owners.link(turn, queue=queue.native)
            turn.max_chains = batch.max_chains

    def _move(self, call: Callable[..., int], state: Any) -> int:
        """One batch: the native status. Raises ChainError, GuestFault."""
        turn = self._turn
        status = call(state, turn)
        if turn.interrupt:
            self._interrupt()
        if status >= _BAD:  # or AVMM_NET_RING
            self._refuse(status)
            return self._move(call, state)
        return status

    def _interrupt(self) -> None:
        if self._turn.interrupt < 0:
            raise StateError(f"chains that are not in flight on {self._queue!r}")
        self._queue.signal()

    def _refuse(self, status: int) -> None:
        """Raise what is wrong with the driver's chains, unless it is that one needs more segments than there was room for."""
        turn, batch = self._turn, self._batch
        if status == _BAD:
            head = int(batch.chains[turn.used].head)
            raise ChainError("it has no room for a header, or buffers of the other direction", head)
        if turn.error.code != lib.AVMM_RING_NO_ROOM or not batch.grow():
            raise self._queue.malformed(turn.error)
        owners.link(turn, iov=batch.iov)
        turn.max_iov = batch.max_iov

    def _may_move(self) -> bool:
        self._held = not self._gate.open()
        return not self._held

    def _ended(self, error: int) -> None:
        if self._port.ended is None:
            text = os.strerror(error) if error else "the other end has closed"
            self._port.ended = OSError(error, text)
            self._on_end(self._port, self._port.ended)


class Receiver(_Pump):
    """From the host into the guest's buffers."""

    def __init__(self, queue: Queue, port: Port, watch: FdWatch, on_end: Ended, limiter: Limiter) -> None:
        super().__init__(queue, port, watch, on_end, limiter, _RX_CHAINS)
        self._heads: Any = ffi.new("uint16_t[]", self._batch.max_chains)
        self._lens: Any = ffi.new("uint32_t[]", self._batch.max_chains)
        owners.link(self._turn, heads=self._heads, lens=self._lens)
        self._rx = port.rx

    async def run(self) -> None:
        """Until cancelled, or until the other end has gone. Raises ChainError, GuestFault."""
        while self._port.ended is None:
            await self._watch.serve(self._receive)
            if self._held:
                self._watch.ignore()
                await self._gate.wait()
            elif self._status == _ENDED:
                self._ended(self._rx.error)
            elif self._status == _ROOM:
                await self._room(int(self._turn.n))
        self._watch.ignore()

    def _receive(self) -> Next:
        if not self._may_move():
            return Next.RETURN
        for _ in range(_TURN_CALLS):
            self._status = status = self._move(lib.avmm_net_receive_turn, self._rx)
            if status != _MORE or not self._turn.interrupt:
                break
        if self._port.ended is not None or status == _ENDED or (status == _ROOM and not self._turn.used):
            return Next.RETURN
        return Next.KICK if status == _WAIT else Next.TURN

    async def _room(self, held: int) -> None:
        """`held` chains are too few: wait for the driver, unless it has nothing better to give; then the packet is lost."""
        queue, rx = self._queue, self._rx
        if rx.pending and queue.enabled:
            if lib.avmm_queue_available(queue.native) > held:  # the driver has posted some since the turn looked
                await next_turn()
                return
            # A driver with half of its ring filled is not short of buffers: they are too small, and waiting would be for ever.
            if 2 * held >= queue.size:
                rx.pending = 0
                rx.dropped += 1
                await next_turn()
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

    def __init__(self, queue: Queue, port: Port, watch: FdWatch, on_end: Ended, limiter: Limiter) -> None:
        super().__init__(queue, port, watch, on_end, limiter, _TURN_FRAMES)
        self._tx = port.tx

    async def run(self) -> None:
        """Until cancelled. Once the other end has gone frames are dropped. Raises ChainError, GuestFault."""
        tx = self._tx
        try:
            while True:
                await self._queue.serve(self._send)
                if self._held:
                    self._queue.flush()
                    await self._gate.wait()
                elif self._status == _WAIT:
                    await self._watch.writable()
                else:
                    tx.discard = True
                    tx.left_at = tx.left_end = 0
                    self._ended(tx.error)
        finally:
            self._queue.flush()  # an interrupt that the next turn would have raised

    def _send(self) -> Next:
        if not self._may_move():
            return Next.RETURN
        for _ in range(_TURN_CALLS):
            self._status = status = self._move(lib.avmm_net_send_turn, self._tx)
            if status != _MORE:
                return Next.RETURN
            if not (self._turn.interrupt and self._turn.n):
                break
        # A kick costs the guest an exit: who has sent a frame may well send another, which is looked for before one is asked for.
        return Next.TURN if self._turn.n else Next.KICK
