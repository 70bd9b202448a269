"""What there is to send to the guest, onto the rx ring.

Plain functions, called whenever something may have to be sent: `pump` takes rx buffers, gives each connection of the muxer's
round its turn, and returns the buffers that it filled. `offer` is the short way of a socket that has something while nothing
waits before it.
"""

from __future__ import annotations

import asyncio
from time import perf_counter

from aiovmm.devices.virtio.vsock.connection import Connection
from aiovmm.devices.virtio.vsock.from_guest import frames_of
from aiovmm.devices.virtio.vsock.link import Link
from aiovmm.devices.virtio.vsock.packet import HEADER_SIZE
from aiovmm.devices.virtio.vsock.switch import Switch
from aiovmm.errors import ChainError, GuestError
from aiovmm.native import ffi, lib
from aiovmm.runtime.event import Event
from aiovmm.runtime.turns import UNCONTENDED, Job
from aiovmm.virtqueue.batch import Batch
from aiovmm.virtqueue.queue import Queue

__all__ = ["ToGuest"]

_BATCH = 64
_FEW = 4  # chains that are looked at for a trickle
_TURN = 64 << 10  # bytes of one connection before it is the next one's turn


class ToGuest:
    """`broken` is given the error when the guest breaks the rules. Only where it has given no buffers a task waits, `refill`."""

    def __init__(self, queue: Queue, switch: Switch, broken: asyncio.Future[None]) -> None:
        self._queue = queue
        self._switch = switch
        self._muxer = switch.muxer
        self._broken = broken
        self._starved = Event()  # there is something to send, and no rx buffer
        self._pumping = self._closed = False
        self.held = False
        """Nothing is to be sent for now; whoever changes that calls `pump`."""
        self._again = Job(self.pump)
        self._batch = Batch(min(_BATCH, queue.size), 4 * _BATCH)
        self._all = self._batch.max_chains
        self._least = min(_FEW, self._all)
        self._heads = ffi.new("uint16_t[]", _BATCH)
        self._lengths = ffi.new("uint32_t[]", _BATCH)
        self._taken = ffi.new("struct avmm_frames_taken *")
        self._few = Batch(self._least, _BATCH)
        self._frames = frames_of(queue, self._few, self._heads, self._lengths)

    def close(self) -> None:
        """Send nothing any more. Idempotent."""
        self._again.close()
        self._closed = True

    async def refill(self) -> None:
        """Whenever the guest has given no buffers, wait for some and go on. Until cancelled."""
        while True:
            await self._starved.wait()
            await self._queue.wait()
            self._starved.clear()
            self.pump()

    @property
    def _busy(self) -> bool:
        waiting = self.held or self._pumping or self._again.due or self._starved.is_set()
        return waiting or self._closed or self._broken.done() or not self._queue.enabled

    # -- the short way -------------------------------------------------------------------------------------------------

    def offer(self, link: Link) -> None:
        """`link` has something to read."""
        connection = link.connection
        credit = connection.credit
        if self._muxer.busy or self._busy or not connection.calm or not connection.wants_data or not credit:
            link.changed(link)
            return
        frames = self._frames
        got = lib.avmm_frames_give(frames, link.fd, connection.header(), min(credit, _TURN))
        if frames.interrupt:
            self._queue.signal()
        if got == lib.AVMM_FRAMES_RING and frames.error.code != lib.AVMM_RING_NO_ROOM:
            self._broken.set_exception(self._queue.malformed(frames.error))
        elif frames.n and got > lib.AVMM_FRAMES_RING:
            link.received(got, frames.drained)
            self._muxer.rx_bytes += max(got, 0)
        if link.readable or not connection.calm:  # what was no use here `pump` meets again, and deals with it
            link.changed(link)

    # -- by turns ------------------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Send what there is, as far as the guest has given buffers. Never raises."""
        muxer, batch = self._muxer, self._batch
        if not muxer.busy or self._busy:
            return
        self._pumping = True
        try:
            end = perf_counter() + UNCONTENDED
            while True:
                if not self._queue.pop_batch(batch):
                    self._starved.set()
                    return
                batch.max_chains = self._least if self._fill(batch.count) < self._least else self._all
                if not muxer.busy:
                    return
                if perf_counter() >= end:
                    break
            self._again.again()  # in its turn: what programs send has no end, and each batch may be megabytes
        except GuestError as exc:
            self._broken.set_exception(exc)
        finally:
            self._pumping = False

    def _fill(self, count: int) -> int:
        """Use up to `count` chains of the batch; put the others back. How many were used."""
        muxer, at = self._muxer, 0
        try:
            while at < count:
                packet = muxer.next_reset()
                if packet is not None:
                    at = self._put(at, packet)
                    continue
                connection = muxer.next_turn()
                if connection is None:
                    break
                at = self._serve(connection, at, count)
                if not connection.calm:
                    self._switch.settle(connection)
        finally:
            self._queue.finish_batch(count - at, self._heads, self._lengths, at)
        return at

    def _serve(self, connection: Connection, at: int, count: int) -> int:
        """One connection's turn: its control packets, then payload; the next free chain."""
        while connection.pending and at < count:
            packet = connection.next_control()
            if packet is not None:
                at = self._put(at, packet)
        link = self._switch.links.get(connection)
        if link is None or not link.readable or not connection.wants_data:
            return at
        credit = connection.credit
        if not credit:
            connection.block()
            return at
        if at < count:
            header, limit = connection.header(), min(credit, _TURN)
            got = link.receive(self._batch, at, header, limit, self._heads, self._lengths, self._taken)
            if got is None:
                raise ChainError("an rx buffer has no room for a payload", self._batch.chains[at].head)
            at += self._taken.chains
            self._muxer.rx_bytes += got
        if link.readable:
            self._muxer.schedule(connection)
        return at

    def _put(self, at: int, packet: bytes) -> int:
        batch = self._batch
        if lib.avmm_frame_put(batch.chains, at, batch.iov, packet, HEADER_SIZE, self._heads, self._lengths) < 0:
            raise ChainError("an rx buffer is shorter than a header", batch.chains[at].head)
        return at + 1
