"""The entropy device, VIRTIO 1.2 §5.4: the driver offers buffers, the device fills them with random bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Self

from aiovmm.config import RngConfig
from aiovmm.devices.virtio.rng.source import EntropySource, ImmediateSource, ThreadedSource, open_source
from aiovmm.errors import ChainError
from aiovmm.native import ffi, lib
from aiovmm.runtime.plain import Fields, State
from aiovmm.runtime.tasks import opened_in_thread
from aiovmm.runtime.turns import next_turn
from aiovmm.virtqueue import Batch, Queue, VirtioDevice

__all__ = ["REQUEST_LIMIT", "RngDevice"]

REQUEST_LIMIT = 64 << 10
"""Bytes that one request gets at most; fewer than were asked for are legal (VIRTIO 1.2 §5.4.6.1). Descriptors may overlap:
without a limit, a guest with one page of memory asks for 4 GiB in a chain, and holds the host's loop for ten seconds with it."""

_TURN = 256 << 10
"""Bytes after which the loop gets its turn: less than a millisecond of the host's generator."""

_MAX_VIEWS = 64


class RngDevice(VirtioDevice):
    """`open_source` is called by `open`, in a thread if it `may_block`, and what it returns is closed by `close`."""

    device_id = 4
    name = "rng"
    queue_sizes = (256,)

    def __init__(self, open_source: Callable[[], EntropySource], *, may_block: bool = False) -> None:
        self._open_source = open_source
        self._may_block = may_block
        self._source: EntropySource | None = None

    @classmethod
    def from_config(cls, config: RngConfig) -> Self:
        """A device that reads `config.src`."""
        return cls(lambda: open_source(config.src), may_block=not config.src.is_relative_to("/dev"))

    async def open(self) -> None:
        """Open the source. Raises HostError."""
        if self._source is None:
            self._source = source = await self._opened()
            if isinstance(source, ThreadedSource):
                source.label = self.label

    async def _opened(self) -> EntropySource:
        if not self._may_block:
            return self._open_source()
        return await opened_in_thread(f"{self.label}: open", lambda source: source.close(), self._open_source)

    async def close(self) -> None:
        """Close it."""
        source, self._source = self._source, None
        if source is not None:
            source.close()

    def save(self) -> State:
        """Nothing: what a source has given and no request got is not the guest's."""
        return {}

    def load(self, state: State) -> None:
        """Raises SnapshotError."""
        Fields(state, self.name).end()

    async def run(self, queues: list[Queue], features: int) -> None:
        """Serve requests. Raises HostError when the source fails or ends, ChainError for a request without room."""
        source = self._source
        assert source is not None
        if isinstance(source, ImmediateSource):
            await _serve_batches(queues[0], source)
        else:
            await _serve_chains(queues[0], source)


async def _serve_batches(queue: Queue, source: ImmediateSource) -> None:
    """As much as a turn allows in one native call; what is left goes back, to be taken again in the next."""
    batch = Batch(queue.size, 4 * queue.size)
    heads, lengths = ffi.new("uint16_t[]", queue.size), ffi.new("uint32_t[]", queue.size)
    async for _ in queue.batches(batch):
        done = lib.avmm_chains_fill(
            source.fd, batch.chains, batch.count, batch.iov, REQUEST_LIMIT, _TURN, heads, lengths
        )
        if done <= 0:
            _refuse(queue, batch, source, done)
        if done < batch.count:
            queue.put_back_batch(batch.count - done)
        queue.push_many(heads, lengths, done)


def _refuse(queue: Queue, batch: Any, source: ImmediateSource, code: int) -> None:
    """The first chain of a batch cannot be filled."""
    if code == lib.AVMM_FILL_BAD_CHAIN:
        raise _no_room(batch.chains[0].head)
    raise source.failed(-code)


async def _serve_chains(queue: Queue, source: EntropySource) -> None:
    """One request after the other, as the source gives."""
    async for chain in queue:
        if chain.readable or not chain.writable_size:
            raise _no_room(chain.head)
        views = chain.reserve(min(REQUEST_LIMIT, chain.room))[:_MAX_VIEWS]
        try:
            written = await source.read(views)
        except asyncio.CancelledError:
            queue.put_back(chain)  # a queue that is resumed has it again
            raise
        queue.push(chain, written)
        queue.flush()  # the next read may take long
        await next_turn()


def _no_room(head: int) -> ChainError:
    # "The driver MUST NOT place driver-readable buffers into the queue" (§5.4.6.1); and an answer has at least one byte.
    return ChainError("a request for entropy has room to write, and nothing to read", head)
