"""Where a pool's guests come from if it has workers: each is in the one that has the fewest, which is started if need be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from aiovmm.config import VMConfig
from aiovmm.confine.confinement import Confinement
from aiovmm.lifecycle import ExitStatus
from aiovmm.pool.workers.confined import to_state_of
from aiovmm.pool.workers.plain import WorkerLost
from aiovmm.pool.workers.process import Worker
from aiovmm.pool.workers.remote_vm import RemoteVM, check_remote
from aiovmm.runtime.dataclass import replace
from aiovmm.runtime.tasks import finish
from aiovmm.vm import VM

__all__ = ["Workers"]

_CLOSED = "was closed before it had begun"
_TRIES = 3  # to make a guest whose worker dies meanwhile
_FIRST_DELAY, _LONGEST_DELAY = 0.05, 30.0  # seconds until one that could not be started is wanted again


class _Slot:
    """A place for a worker. `load` counts guests there, and those that are to be."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.load = 0
        self.worker: Worker | None = None
        self.beginning: Worker | None = None
        self.starting: asyncio.Task[Worker] | None = None
        self.failures = 0
        self.not_before = 0.0


class Workers:
    """`count` of them. `started` and `died` are told of each, `died` only if nobody asked for it. Raises ConfigError for
    guests that cannot be in another process."""

    def __init__(
        self,
        config: VMConfig,
        count: int,
        pool: str,
        confinement: Confinement,
        started: Callable[[Worker], None],
        died: Callable[[Worker], None],
    ) -> None:
        check_remote(config)
        self._config = config
        self._confined = to_state_of(config, confinement)
        self._pool = pool
        self._started, self._died = started, died
        self._slots = [_Slot(i) for i in range(count)]
        self._made = 0
        self._closed = False

    def was_lost(self, status: ExitStatus | None) -> bool:
        """Whether a guest has ended because its worker did."""
        return status is not None and isinstance(status.error, WorkerLost)

    def guest(self, name: str) -> AbstractAsyncContextManager[VM]:
        """A running guest; the worker has taken it apart when the block is left. Raises what `VM.start` does, WorkerLost."""
        return self._guest(name)

    @asynccontextmanager
    async def _guest(self, name: str) -> AsyncIterator[VM]:
        async with AsyncExitStack() as stack:
            yield await self._make(name, stack)

    async def _make(self, name: str, stack: AsyncExitStack) -> VM:
        for tries_left in reversed(range(_TRIES)):
            try:
                return await stack.enter_async_context(self._in_one(name))
            except WorkerLost:
                if not tries_left:
                    raise
        raise AssertionError("the last try returns or raises")

    @asynccontextmanager
    async def _in_one(self, name: str) -> AsyncIterator[VM]:
        slot = self._least_loaded()
        slot.load += 1
        try:
            worker = await self._worker_of(slot)
            self._made += 1
            vm = RemoteVM(replace(self._config, name=name), worker, self._made)
            try:
                await vm.make()
                yield vm
            finally:
                await vm.leave()
        finally:
            slot.load -= 1

    def _least_loaded(self) -> _Slot:
        now = asyncio.get_running_loop().time()
        return min(self._slots, key=lambda slot: (slot.not_before > now, slot.load, slot.index))

    async def _worker_of(self, slot: _Slot) -> Worker:
        if slot.worker is not None and slot.worker.lost is None:
            return slot.worker
        if slot.starting is None:
            slot.starting = asyncio.get_running_loop().create_task(
                self._start(slot), name=f"worker {slot.index}: start"
            )
            slot.starting.add_done_callback(lambda start: start.cancelled() or start.exception())  # seen
        return await asyncio.shield(slot.starting)

    async def _start(self, slot: _Slot) -> Worker:
        """Once for all that wait for it; not cancelled with them."""
        worker = slot.beginning = Worker(slot.index, self._pool, self._gone)
        if self._closed:
            worker.give_up(_CLOSED)
        try:
            await worker.start(self._confined)
        except BaseException:
            slot.not_before = asyncio.get_running_loop().time() + min(_FIRST_DELAY * 2**slot.failures, _LONGEST_DELAY)
            slot.failures = min(slot.failures + 1, 20)
            raise
        finally:
            slot.starting = slot.beginning = None
        slot.failures, slot.not_before = 0, 0.0
        slot.worker = worker
        self._started(worker)
        return worker

    def _gone(self, worker: Worker) -> None:
        slot = self._slots[worker.index]
        if slot.worker is worker:  # it had begun
            slot.worker = None
            if not self._closed:
                self._died(worker)

    async def aclose(self) -> None:
        """End all. Its guests have left. Idempotent; completes even if the caller is cancelled."""
        self._closed = True
        await finish(self._end())

    async def _end(self) -> None:
        for slot in self._slots:
            if slot.beginning is not None:
                slot.beginning.give_up(_CLOSED)
        if starting := [slot.starting for slot in self._slots if slot.starting is not None]:
            await asyncio.wait(starting)
        async with asyncio.TaskGroup() as group:
            for slot in self._slots:
                if slot.worker is not None:
                    group.create_task(slot.worker.aclose())
