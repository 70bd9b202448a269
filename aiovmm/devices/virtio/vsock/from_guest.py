"""Packets of the guest, from the tx ring to the switch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiovmm.devices.virtio.vsock.packet import CREDIT_AT, HEADER_SIZE, LENGTH_AT, OP_AT, Op, parse_headers
from aiovmm.devices.virtio.vsock.switch import Switch
from aiovmm.native import ffi, lib, owners
from aiovmm.virtqueue.batch import Batch
from aiovmm.virtqueue.queue import Queue
from aiovmm.virtqueue.serving import Next

__all__ = ["FromGuest", "frames_of"]

_BATCH = 64
_ASKS = 4  # for new connections, in a turn: each makes sockets, and perhaps a task of the program's


class FromGuest:
    """`turn` is for `Queue.serve`; `pump` is called behind each, for answers."""

    def __init__(self, queue: Queue, switch: Switch, pump: Callable[[], None]) -> None:
        self._queue = queue
        self._receive = switch.receive
        self._pump = pump
        self._batch = Batch(min(_BATCH, queue.size), 4 * _BATCH)
        self._headers = ffi.new("uint8_t[]", self._batch.max_chains * HEADER_SIZE)
        self._view = ffi.buffer(self._headers)
        self._firsts = ffi.new("uint32_t[]", self._batch.max_chains + 1)
        self._heads = ffi.new("uint16_t[]", self._batch.max_chains)
        self._lengths = ffi.new("uint32_t[]", self._batch.max_chains)  # nothing is ever written to these
        self._frames = frames_of(queue, self._batch, self._heads, self._lengths)
        owners.link(self._frames, headers=self._headers, firsts=self._firsts)

    def turn(self) -> Next:
        """Neighbouring payloads of one connection are taken as one packet: one pass through the states, one system call. A guest
        that keeps to its credit sees no difference, since what it may send in all does not depend on where it cuts."""
        frames, firsts, batch = self._frames, self._firsts, self._batch
        runs = lib.avmm_frames_take(frames) if self._queue.enabled else 0
        if runs <= 0:
            return self._nothing(runs)
        first, asks = 0, _ASKS
        for run, header in enumerate(parse_headers(self._view[: runs * HEADER_SIZE]), 1):
            end = firsts[run]
            asked = self._receive(header, batch, first, end - first)
            first = end
            if asked and (asks := asks - 1) == 0:
                break
        self._queue.finish_batch(frames.n - first, self._heads, self._lengths, first)
        self._pump()
        return Next.TURN if frames.n == batch.max_chains or first < frames.n else Next.KICK

    def _nothing(self, code: int) -> Next:
        """No packets; why not."""
        frames, batch = self._frames, self._batch
        if code == lib.AVMM_FRAMES_RING:
            if frames.error.code != lib.AVMM_RING_NO_ROOM or not batch.grow():
                raise self._queue.malformed(frames.error)
            owners.link(frames, iov=batch.iov)
            frames.max_iov = batch.max_iov
            return Next.TURN
        return Next.KICK


def frames_of(queue: Queue, batch: Batch, heads: Any, lengths: Any) -> Any:
    """A `struct avmm_frames` over these, which it keeps."""
    frames = ffi.new("struct avmm_frames *")
    owners.link(frames, queue=queue.native if queue.enabled else ffi.NULL, mem=queue.memory.table)
    owners.link(frames, chains=batch.chains, iov=batch.iov, heads=heads, lengths=lengths)
    frames.max_chains, frames.max_iov = batch.max_chains, batch.max_iov
    frames.layout = (HEADER_SIZE, LENGTH_AT, CREDIT_AT, OP_AT, Op.RW)
    return frames
