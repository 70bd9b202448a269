"""The pmem device: says where the file is in guest-physical space, and flushes it on request.

Reading and writing never come here: the guest does them itself in the mapping. A flush runs in a thread; all that ask for one
while it runs share the next, which covers what each of them has written before it asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self

from aiovmm.config import PmemConfig
from aiovmm.devices.virtio.pmem.backing import ALIGNMENT, Backing, open_backing
from aiovmm.devices.virtio.pmem.protocol import FAILURE, SUCCESS, config_space, is_flush
from aiovmm.errors import HostError, SnapshotError, StateError
from aiovmm.runtime.plain import Fields, State
from aiovmm.runtime.tasks import in_thread
from aiovmm.runtime.turns import next_turn
from aiovmm.runtime.worker import Worker
from aiovmm.virtqueue import Chain, Queue, VirtioDevice

__all__ = ["PmemDevice"]


class PmemDevice(VirtioDevice):
    """`open_backing` is called by `open`, and what it returns is closed by `close`."""

    device_id = 27
    name = "pmem"
    queue_sizes = (64,)
    memory_alignment = ALIGNMENT

    def __init__(self, open_backing: Callable[[], Backing]) -> None:
        self._open_backing = open_backing
        self._backing: Backing | None = None
        self._flusher = Worker(self.name)  # no executor of the embedder's: guests could fill it
        self._start = 0
        self.flushes = 0  # of the host's file, each for one or more requests
        self.error: OSError | None = None  # why the last flush that failed did

    @classmethod
    def from_config(cls, config: PmemConfig) -> Self:
        """A device on `config.file`."""
        return cls(lambda: open_backing(config))

    async def open(self) -> None:
        """Open the file. Raises HostError, ConfigError."""
        self._flusher.name = f"{self.label} flush"
        if self._backing is None:
            await in_thread(f"{self.label} open", self._open)

    def _open(self) -> None:
        self._backing = self._open_backing()

    async def close(self) -> None:
        """Close it."""
        await self._flusher.aclose()
        backing, self._backing = self._backing, None
        if backing is not None:
            await in_thread(f"{self.label} close", backing.close)

    def memory(self) -> Backing:
        """What is to be mapped into the guest, checked anew. Raises ConfigError, StateError."""
        if self._backing is None:
            raise StateError("the pmem device is not open")
        self._backing.check()
        return self._backing

    def placed(self, address: int) -> None:
        """It was mapped at guest-physical `address`."""
        self._start = address

    def read_config(self, offset: int, size: int) -> bytes:
        """Where the memory is and how large (§5.19.4)."""
        length = self._backing.size if self._backing is not None else 0
        return config_space(self._start, length)[offset : offset + size].ljust(size, b"\0")

    @property
    def why_not_saved(self) -> str | None:
        """What goes to no file is nowhere but in this process."""
        if self._backing is not None and not self._backing.shared:
            return "what the guest has written there goes to no file (discard_writes)"
        return None

    async def sync(self) -> None:
        """Bring to the file's storage what was written. Raises HostError."""
        if self._backing is None or not self._backing.shared:
            return
        try:
            await _to_the_end(self._flusher.submit(self._backing.sync))
        except OSError as exc:
            raise HostError("flushing the pmem file", exc.errno or 0, "", str(self._backing.path)) from exc

    def save(self) -> State:
        """Where it is. The contents are the file's."""
        return {"start": self._start, "size": self._backing.size if self._backing is not None else 0}

    def load(self, state: State) -> None:
        """Raises SnapshotError unless it is as large as it was, and in the same place."""
        fields = Fields(state, self.name)
        was = {name: fields.number(name) for name in ("start", "size")}
        fields.end()
        if was != (now := self.save()):
            raise SnapshotError(
                f"it had {was['size']:#x} bytes at {was['start']:#x}, and has {now['size']:#x} at {now['start']:#x}: "
                "give it the file that it had, and the guest the same memory"
            )

    async def run(self, queues: list[Queue], features: int) -> None:
        """Answer flushes. Raises ChainError for a request that cannot be answered."""
        queue = queues[0]
        while True:
            await queue.wait()
            waiting: list[Chain] = []
            for _ in range(queue.size):  # not as many as there are: a driver may offer them as fast as they are refused
                if (chain := queue.pop()) is None:
                    break
                if is_flush(chain):
                    waiting.append(chain)
                else:
                    _answer(queue, chain, FAILURE)
            if waiting:
                result = SUCCESS if await self._flush() else FAILURE
                for chain in waiting:
                    _answer(queue, chain, result)
            queue.flush()
            await next_turn()

    async def _flush(self) -> bool:
        """Whether all that was written is on stable storage. With a private mapping there is nothing to bring there."""
        backing = self._backing
        assert backing is not None
        if not backing.shared:
            return True
        self.flushes += 1
        try:
            await _to_the_end(self._flusher.submit(backing.sync))
        except OSError as exc:
            self.error = exc
            hint = "what the guest has flushed may be lost; it was told so"
            self.report(HostError("flushing the pmem file", exc.errno or 0, hint, str(backing.path)))
            return False
        return True


def _answer(queue: Queue, chain: Chain, result: bytes) -> None:
    chain.write(result)
    queue.push(chain)


async def _to_the_end(flush: asyncio.Future[None]) -> None:
    """A caller that is cancelled still waits: the file is not closed under the thread."""
    try:
        await asyncio.shield(flush)
    except asyncio.CancelledError:
        while not flush.done():
            await asyncio.wait([flush])
        raise
