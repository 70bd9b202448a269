"""The rings of a live device: packets of the guest to the switch, and what the switch has to send to the guest.

Sending is a plain function, `pump`, called whenever something may have to be sent: it takes rx buffers, gives each connection
of the muxer's round its turn, and returns the buffers that it filled. Only where the guest has given no buffers a task waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiovmm.devices.virtio.vsock.connection import Connection
from aiovmm.devices.virtio.vsock.packet import (
    CREDIT_AT,
    HEADER_SIZE,
    LENGTH_AT,
    OP_AT,
    TRANSPORT_RESET,
    Op,
    parse_headers,
)
from aiovmm.devices.virtio.vsock.switch import Switch
from aiovmm.errors import ChainError, GuestError
from aiovmm.native import ffi, lib
from aiovmm.virtqueue.batch import Batch
from aiovmm.virtqueue.queue import Queue
from aiovmm.virtqueue.serving import Next

__all__ = ["EVENT", "RX", "TX", "Rings"]

RX, TX, EVENT = 0, 1, 2  # §5.10.2
_TX_BATCH = 64
_RX_BATCH = 64
_FEW = 4  # chains that are looked at for a trickle
_TURN = 64 << 10  # bytes of one connection before it is the next one's turn
_ROUNDS = 8  # rx batches before the loop gets a turn


class Rings:
    """See the module. Made at DRIVER_OK; of no use when `serve` has ended."""

    def __init__(self, queues: Sequence[Queue], switch: Switch) -> None:
        self._rx, self._tx, self._event = queues[RX], queues[TX], queues[EVENT]
        self._switch = switch
        self._loop = asyncio.get_running_loop()
        self._broken: asyncio.Future[None] = self._loop.create_future()
        self._starved = asyncio.Event()  # there is something to send, and no rx buffer
        self._reset_due = asyncio.Event()
        self._pumping = False
        self._again: asyncio.Handle | None = None
        self._batch = Batch(min(_RX_BATCH, self._rx.size), 4 * _RX_BATCH)
        self._all = self._batch.max_chains
        self._heads = ffi.new("uint16_t[]", _RX_BATCH)
        self._lengths = ffi.new("uint32_t[]", _RX_BATCH)
        self._taken = ffi.new("struct avmm_frames_taken *")
        limit = min(_TX_BATCH, self._tx.size)
        self._tx_batch = Batch(limit, 4 * limit)
        self._tx_headers = ffi.new("uint8_t[]", limit * HEADER_SIZE)
        self._tx_heads = ffi.new("uint16_t[]", limit)
        self._tx_lengths = ffi.new("uint32_t[]", limit)  # nothing is ever written to these
        self._tx_firsts = ffi.new("uint32_t[]", limit + 1)
        self._layout = ffi.new("struct avmm_frame_layout *", (HEADER_SIZE, LENGTH_AT, CREDIT_AT, OP_AT, Op.RW))

    async def serve(self) -> None:
        """Until cancelled. Raises GuestError for malformed chains."""
        tasks = [
            asyncio.ensure_future(work)
            for work in (self._tx.serve(self._take), self._wait_for_buffers(), self._serve_events(), self._broken)
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                await task
        finally:
            if self._again is not None:
                self._again.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def transport_reset(self) -> None:
        """Tell the guest that its connections are gone (§5.10.6.7), as soon as it has a buffer for that."""
        self._reset_due.set()

    async def _serve_events(self) -> None:
        while True:
            await self._reset_due.wait()
            async for chain in self._event:
                chain.write(TRANSPORT_RESET)
                self._event.push(chain)
                break
            self._reset_due.clear()

    # -- from the guest ------------------------------------------------------------------------------------------------

    def _take(self) -> Next:
        """Neighbouring payloads of one connection are taken as one packet: one pass through the states, one system call. A guest
        that keeps to its credit sees no difference, since what it may send in all does not depend on where it cuts."""
        tx, batch = self._tx, self._tx_batch
        n = tx.pop_batch(batch)
        if not n:
            return Next.KICK
        heads, headers, firsts = self._tx_heads, self._tx_headers, self._tx_firsts
        runs = lib.avmm_frames_runs(batch.chains, n, batch.iov, self._layout, headers, heads, firsts)
        if runs < 0:
            raise ChainError("a packet is shorter than its header, or than its header says", heads[-1 - runs])
        for run, header in enumerate(parse_headers(ffi.buffer(headers, runs * HEADER_SIZE))):
            first = firsts[run]
            self._switch.receive(header, batch, first, firsts[run + 1] - first)
        tx.finish_batch(0, heads, self._tx_lengths, n)
        self.pump()
        return Next.TURN if n == batch.max_chains else Next.KICK

    # -- to the guest --------------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Send what there is, as far as the guest has given buffers. Never raises; what is wrong ends `serve`."""
        muxer, batch = self._switch.muxer, self._batch
        if not muxer.busy or self._pumping or self._again is not None or self._broken.done() or self._starved.is_set():
            return
        self._pumping = True
        try:
            for _ in range(_ROUNDS):
                if not self._rx.pop_batch(batch):
                    self._starved.set()
                    return
                batch.max_chains = _FEW if self._fill(batch.count) < _FEW else self._all
                if not muxer.busy:
                    return
            self._again = self._loop.call_soon(self._pump_again)
        except GuestError as exc:
            self._broken.set_exception(exc)
        finally:
            self._pumping = False

    def _pump_again(self) -> None:
        self._again = None
        self.pump()

    async def _wait_for_buffers(self) -> None:
        while True:
            await self._starved.wait()
            await self._rx.wait()
            self._starved.clear()
            self.pump()

    def _fill(self, count: int) -> int:
        """Use up to `count` chains of the batch; put the others back. How many were used."""
        switch, muxer = self._switch, self._switch.muxer
        at = 0
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
                switch.settle(connection)
        finally:
            self._rx.finish_batch(count - at, self._heads, self._lengths, at)
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
            limit = min(credit, _TURN)
            header = connection.header()
            got = link.receive(self._batch, at, header, limit, self._heads, self._lengths, self._taken)
            if got is None:
                raise ChainError("an rx buffer has no room for a payload", self._batch.chains[at].head)
            at += self._taken.chains
        if link.readable:
            self._switch.muxer.schedule(connection)
        return at

    def _put(self, at: int, packet: bytes) -> int:
        batch = self._batch
        if lib.avmm_frame_put(batch.chains, at, batch.iov, packet, HEADER_SIZE, self._heads, self._lengths) < 0:
            raise ChainError("an rx buffer is shorter than a header", batch.chains[at].head)
        return at + 1
