"""The transmit queue of a console: chains copied out by native code and returned at once, their bytes handed on in large pieces.

Linux spins until its chain is back, and then writes the next: 16 bytes of a kernel message, 2 KiB of a program's. So what
counts is how soon a chain is returned, and that a guest which goes on printing needs no doorbell for each. Hence the ring is
looked at for some time after a chain was taken, in two ways: within the native call, which is quick but keeps the loop, so it is
bounded by `look_ns` and TURN and left out where it does not pay; and then for some turns of the loop, which leave it to others.

The interrupt is considered when the native call ends: a driver that spins has by then taken its chain back, and wants none.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from aiovmm.native import ffi, lib, owners
from aiovmm.native.room import room
from aiovmm.runtime.patience import look_ns
from aiovmm.runtime.turns import next_turn
from aiovmm.virtqueue import Batch, Queue

__all__ = ["CHAIN_MAX", "HOLD", "LOOKS", "PIECE", "TURN", "LookPolicy", "OutputCopier"]

PIECE = 64 << 10
"""Bytes handed on at once. Bounds memory and a turn: a chain of overlapping descriptors can be 4 GiB of output."""

CHAIN_MAX = 1 << 32
"""Bytes of a chain (VIRTIO 1.2 §2.7.5)."""

TURN = 500_000
"""Nanoseconds of a native call before the loop gets its turn."""

LOOKS = 8
"""Turns of the loop for which the ring is looked at again before a kick is asked for. An idle console costs nothing."""

HOLD = 0.005
"""Seconds between two pieces handed on while the guest goes on printing, so that readers are woken for much at once. Output after
a pause is handed on at once, and the rest when the guest pauses again."""


class LookPolicy:
    """How long to look within native calls. What comes of it is only known by trying: a guest that prints a line now and then, or
    one whose processor is the one that would look, makes every look vain. After some of these in a row it is tried seldom."""

    VAIN = 4
    SELDOM = 16

    def __init__(self) -> None:
        self._vain = 0
        self._look = look_ns()

    @property
    def look(self) -> int:
        """Nanoseconds, this time."""
        return self._look if self._vain < self.VAIN or self._vain % self.SELDOM == 0 else 0

    def note(self, found: bool) -> None:
        """Chains were taken; whether further ones were found by looking. Also after those that were not followed by a look."""
        self._vain = 0 if found else self._vain + 1


class OutputCopier:
    """Serves one live queue. `output` gets pieces of 1..PIECE bytes, without the first `printed` ones."""

    def __init__(self, queue: Queue, output: Callable[[bytes], None], printed: int = 0) -> None:
        self._queue = queue
        self._output = output
        self._batch = Batch(queue.size, 4 * queue.size)
        self._at = ffi.new("struct avmm_output *")
        lengths = ffi.new("uint32_t[]", queue.size)  # all 0
        owners.link(self._at, heads=ffi.new("uint16_t[]", queue.size), lengths=lengths, chains=self._batch.chains)
        self._at.max_chains = self._batch.max_chains
        self._use_room()
        self._piece = room("uint8_t[]", PIECE)
        self._held = 0  # bytes of it that have not been handed on
        self._again = printed  # bytes that come once more
        self._handed_on = -HOLD  # when, the last time
        self._policy = LookPolicy()

    async def serve(self) -> None:
        """Until cancelled. Raises GuestError for a malformed chain."""
        while True:
            await self._queue.wait()
            try:
                await self._take()
            finally:
                self._hand_on()

    def put_back(self) -> int:
        """What was taken and is not printed, for who goes on with the queue; how many bytes of its first chain are printed."""
        at = self._at.at
        left, self._at.count = self._at.count - at.chain, 0
        if not left:
            return self._again
        self._queue.put_back_batch(left)
        first = self._batch.chains[at.chain].iov
        return self._again + int(at.offset) + sum(int(self._batch.iov[first + i].iov_len) for i in range(at.segment))

    async def _take(self) -> None:
        """All that the guest prints, until it pauses."""
        looks = LOOKS
        while looks:
            looks = LOOKS if self._copy() else looks - 1
            await next_turn()

    def _copy(self) -> bool:
        """Take what there is, as far as it fits; whether there was any. Chains are back before their bytes are looked at."""
        batch, at, queue, held = self._batch, self._at, self._queue, self._held
        size = lib.avmm_queue_output(
            queue.native, queue.memory.table, at, self._piece + held, PIECE - held, self._policy.look, TURN, batch.error
        )
        queue.flush()
        self._held += self._new(held, size)
        if self._held == PIECE or (self._held and time.monotonic() - self._handed_on >= HOLD):
            self._hand_on()
        if batch.error.code == lib.AVMM_RING_NO_ROOM and batch.grow():
            self._use_room()
            return True
        if batch.error.code:
            raise queue.malformed(batch.error)
        if at.taken:
            self._policy.note(at.found > 0)
        return bool(size or at.taken)

    def _new(self, at: int, size: int) -> int:
        """How many of `size` bytes that were copied to `at` are new; they stand there then."""
        again = min(self._again, size)
        if again:
            self._again -= again
            ffi.memmove(self._piece + at, self._piece + at + again, size - again)
        return size - again

    def _use_room(self) -> None:
        owners.link(self._at, iov=self._batch.iov)
        self._at.max_iov = self._batch.max_iov

    def _hand_on(self) -> None:
        size, self._held = self._held, 0
        if size:
            self._output(ffi.buffer(self._piece, size)[:])
            self._handed_on = time.monotonic()
