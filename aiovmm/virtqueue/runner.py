"""The life of a device between DRIVER_OK and reset, the same under every transport.

    idle --activate--> live --run() raises--> broken (NEEDS_RESET)
      ^                 | ^                      |
      |          suspend| |resume                |
      |                 v |                      |
      +------reset------+-+----------------------+

A suspended device goes on where it was, in this process or, by `positions` and the device's own state, in another.

Whatever a guest makes a device do ends here: an exception out of `run` becomes NEEDS_RESET, a configuration interrupt and
a call of `on_error`. It never reaches the VM or the loop.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

from aiovmm.errors import AiovmmError, GuestFault, SnapshotError, StateError
from aiovmm.irq import IrqLine
from aiovmm.memory import AddressSpace
from aiovmm.runtime.fair import Account
from aiovmm.runtime.tasks import SERVED, bury
from aiovmm.runtime.turns import ACCOUNT, Turns, turns_of
from aiovmm.virtqueue.bell import Bell
from aiovmm.virtqueue.config import QueueConfig, QueueCounters, QueuePosition
from aiovmm.virtqueue.device import VirtioDevice
from aiovmm.virtqueue.queue import Queue

__all__ = ["CreateTask", "DeviceRunner"]

_NONE = QueueCounters()
CreateTask = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]


class DeviceRunner:
    """Runs one device. `create_task` is the VM's TaskGroup's; `needs_reset` is called when the device breaks and does the
    transport's part of it: status bit and, if it returns true, the interrupt that the runner then raises; `on_error` gets
    the exception, for logs and events."""

    def __init__(
        self,
        device: VirtioDevice,
        memory: AddressSpace,
        create_task: CreateTask,
        *,
        needs_reset: Callable[[], bool] = lambda: True,
        on_error: Callable[[VirtioDevice, Exception], None] | None = None,
    ) -> None:
        self.device = device
        self.memory = memory
        self.queues: list[Queue] = []
        self.error: Exception | None = None  # what broke the device since the last activation
        self._create_task = create_task
        self._needs_reset = needs_reset
        self._on_error = on_error
        self._config_irq: IrqLine | None = None
        self._turns: Turns | None = None  # of the loop, once it runs
        self._task: asyncio.Task[None] | None = None
        self._past = [_NONE] * len(device.queue_sizes)  # of queues that were closed
        self._used = False  # activated since the last reset

    @property
    def live(self) -> bool:
        """Whether the device's coroutine runs."""
        return self._task is not None and not self._task.done()

    async def activate(
        self,
        configs: Sequence[QueueConfig],
        features: int,
        kick_fds: Sequence[int],
        queue_irqs: Sequence[IrqLine],
        config_irq: IrqLine,
        positions: Sequence[QueuePosition] | None = None,
    ) -> None:
        """DRIVER_OK: make the queues live and start the device. `kick_fds` are non-blocking eventfds, one for each queue, some of
        them the same (bell.py), that stay the transport's and open until `reset` has returned. What is wrong with the guest's
        configuration breaks the device and is not raised. Raises StateError if it has not been reset since the last time."""
        if self._task is not None or self.queues:
            raise StateError(f"{self.device.name} is active already")
        self._config_irq = config_irq
        self._used = True
        self.error = None
        bells = {fd: Bell(fd) for fd in kick_fds}
        try:
            for i, (config, kick_fd, irq) in enumerate(zip(configs, kick_fds, queue_irqs, strict=True)):
                queue = Queue.activate(
                    config,
                    self.memory,
                    index=i,
                    features=features,
                    kick_fd=bells[kick_fd],
                    interrupt=irq,
                    position=positions[i] if positions else None,
                )
                self.queues.append(queue)
        except Exception as exc:
            self._end_queues()  # a position of some of them would be that of no device
            self._broken(exc)
            return
        body = self._run(list(self.queues), features)
        try:
            self._task = self._create_task(body)
        except (RuntimeError, StateError) as exc:  # the VM's task group is being torn down
            body.close()
            self._broken(exc)

    async def _run(self, queues: list[Queue], features: int) -> None:
        SERVED.set(weakref.ref(self.device))
        ACCOUNT.set(self.device._account or Account())
        self._turns = turns_of(asyncio.get_running_loop())  # which are there as long as somebody keeps them
        try:
            await self.device.run(queues, features)
            if not self.device.suspending:
                self._broken(
                    StateError(
                        f"{self.device.name}: run() returned, and nobody serves its queues; it runs until cancelled"
                    )
                )
        except asyncio.CancelledError:
            if _cancelled_from_outside():
                raise
            # Nobody cancelled this task: the device awaited something that was cancelled behind its back.
            self._broken(StateError(f"something that {self.device.name} waited for was cancelled"))
        except Exception as exc:
            self._broken(exc)
        finally:
            for queue in queues:  # nobody serves them any more: a guest that goes on kicking wakes nobody
                queue.flush()
                queue.close()

    def _broken(self, exc: Exception) -> None:
        self.error = exc = _culprit(exc)
        if self._needs_reset() and self._config_irq is not None:
            self._config_irq.pulse()  # §2.1.2: a configuration change notification tells the driver
        self._report(exc)

    def _report(self, exc: Exception) -> None:
        if self._on_error is not None:
            self._on_error(self.device, exc)

    async def suspend(self) -> None:
        """Stop the device so that it can go on as if nothing had been: it ends what is with the host, and puts the rest
        back. Idempotent; may be cancelled, after which it stops all the same, and called again. Raises SnapshotError for a
        device that has lost requests by that."""
        task = self._task
        if task is not None and not bury(task):
            self.device.suspending = True
            task.cancel()
            while not task.done():
                await asyncio.wait([task])
        lost = sum(queue.lost for queue in self.queues) if self.error is None else 0
        if self._task is task and lost:
            raise SnapshotError(
                f"{self.device.name} keeps {lost} requests that it has neither answered nor put back: let `run` do one of both "
                "when it is cancelled"
            )

    async def resume(
        self,
        configs: Sequence[QueueConfig],
        features: int,
        kick_fds: Sequence[int],
        queue_irqs: Sequence[IrqLine],
        config_irq: IrqLine,
        positions: Sequence[QueuePosition],
    ) -> None:
        """Go on after `suspend`, here or where `positions` come from. As `activate`, but that the device's `run` knows of it."""
        await self.stopped()
        self._task = None
        self._let_go()
        self.device.suspending = False
        self.device.resumed = True
        await self.activate(configs, features, kick_fds, queue_irqs, config_irq, positions)

    def take_over(self) -> None:
        """A driver has started the device elsewhere: a reset is to reach it."""
        self._used = True

    async def stopped(self) -> None:
        """Until a device that is being suspended is."""
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    def _let_go(self) -> None:
        self._end_queues()
        self._config_irq = None

    def _end_queues(self) -> None:
        for queue in self.queues:
            queue.close()
            self._past[queue.index] += queue.counters
        self.queues.clear()

    async def reset(self) -> None:
        """Stop the device and wait until it has stopped, its host I/O ended. Idempotent; may be cancelled and called again."""
        task = self._task
        self.device.suspending = False
        if task is not None and not bury(task):
            task.cancel()
            while not task.done():
                await asyncio.wait([task])
        if self._task is not task:  # another reset, and perhaps an activation, went by while this one waited
            return
        self._task = None
        self._let_go()
        self.device.resumed = False
        was_used, self._used = self._used, False
        if was_used:
            try:
                self.device.reset()
            except Exception as exc:
                self._report(exc)

    def uses(self, start: int, end: int) -> bool:
        """Whether a part of a live queue's rings lies at the device's addresses [start, end]."""
        return any(queue.uses(start, end) for queue in self.queues)

    async def revalidate(self) -> None:
        """The translation in front of the device has changed. If a ring is not where it was, the device is stopped as `reset`
        does it, and broken: when this returns, nothing of it touches what it must not reach any more."""
        try:
            for queue in self.queues:
                queue.check_rings()
        except GuestFault as exc:
            task = self._task
            if task is None or task.done():
                return
            task.cancel()
            while not task.done():
                await asyncio.wait([task])
            if self._task is task:
                self._broken(exc)

    def counters(self) -> list[QueueCounters]:
        """Each queue's counters since the machine was made, over all resets."""
        totals = list(self._past)
        for queue in self.queues:
            totals[queue.index] += queue.counters
        return totals

    def positions(self) -> list[QueuePosition]:
        """Where each queue of a suspended device stands; none of one that no driver has started, or could."""
        return [queue.position for queue in self.queues]


def _culprit(exc: Exception) -> Exception:
    """Of what the tasks of a device raised at once: its bug, all of it if there are several, or the first of the guest's faults.
    A guest breaks as many queues as it likes in one turn of the loop."""
    several = list(_leaves(exc))
    bugs = [one for one in several if not isinstance(one, AiovmmError)]
    return exc if len(bugs) > 1 else (bugs or several)[0]


def _leaves(exc: Exception) -> Iterator[Exception]:
    if isinstance(exc, ExceptionGroup):
        for one in exc.exceptions:
            yield from _leaves(one)
    else:
        yield exc


def _cancelled_from_outside() -> bool:
    # In a function of its own: a local name for the task, in a frame that the task's exception refers to, would make a cycle
    # that keeps guest memory alive until the next garbage collection.
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
