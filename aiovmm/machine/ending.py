"""What a machine tells its VM, and how the end of a guest is brought about and told. Whatever fails on the way, the end arrives.

guest_ended --> _after: a reset, or --> end: vCPUs stopped --> _tell: `stopped`, consoles' ends, the event STOPPED
                   |                     |                       ^
                   +-- fails, cancelled -+----------- in any case
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from typing import Any

from aiovmm.config import RebootPolicy, VMConfig
from aiovmm.console import Console
from aiovmm.errors import HostError, host_error
from aiovmm.lifecycle import EventKind, ExitReason, ExitStatus, Lifecycle, VMState
from aiovmm.machine.journal import Journal
from aiovmm.machine.power import Power
from aiovmm.machine.watch import PanicWatch
from aiovmm.runtime.admission import admitted
from aiovmm.runtime.event import Event
from aiovmm.runtime.home import HomeLoop

__all__ = ["Ending", "failed", "of_host"]

_RESETS = (ExitReason.REBOOT, ExitReason.TRIPLE_FAULT)  # how a kernel may end that has panicked
PATIENCE = 20.0
"""Seconds for vCPUs to leave what they do. One that is in the host's kernel, where it waits for memory that a file has (pmem) on
storage which does not answer, leaves it then, and nobody waits."""
_PANIC_LINE = 0.2  # seconds that the line of a panic's message has to end


class Ending:
    """Of one VM (machine.MachineOwner). `transition` is held by whoever changes between running and paused, or resets."""

    def __init__(self, config: VMConfig, home: HomeLoop, consoles: Sequence[Console]) -> None:
        self.life = Lifecycle()
        self.journal = journal = Journal(config.name, home)
        self.panic = PanicWatch(
            lambda message: journal.emit(EventKind.PANICKED, message),
            lambda flush: asyncio.get_running_loop().call_later(_PANIC_LINE, flush),
        )
        self.stopped = Event()
        self.transition = asyncio.Lock()
        self.power = Power(journal.device_error)
        self.readers: list[Callable[[], object]] = []
        """Have those give up who read all of its memory: nobody who closes it waits for as long as that takes."""
        self.saving: asyncio.Lock | None = None  # held by whoever writes a snapshot of it, once somebody has
        self._config = config
        self._consoles = tuple(consoles)
        self._task: asyncio.Task[None] | None = None
        self._limit: asyncio.Task[None] | None = None  # that ends it, once it has met one

    # -- what the machine tells us (machine.MachineOwner)

    def guest_ended(self, reason: ExitReason, detail: str, error: BaseException | None = None) -> None:
        """The guest powered off, asked for a reset, or cannot go on. Called on the loop, from anywhere in a dispatch."""
        if self._task is not None or self.life.state is VMState.STOPPED:
            return
        work = self._after(ExitStatus(reason, detail, error))
        try:
            self._task = asyncio.get_running_loop().create_task(work, name=f"{self._config.name}: end")
        except Exception as exc:
            work.close()
            self.give_up(exc)
        else:
            self._task.add_done_callback(self._handled)

    def limit_met(self, status: ExitStatus) -> None:
        """It has had what it may have: it ends, whatever it is at."""
        if self._limit is None:
            self._limit = asyncio.get_running_loop().create_task(self.end(status), name=f"{self._config.name}: limit")
            self._limit.add_done_callback(self._handled)

    def device_failed(self, device: str, error: BaseException) -> None:
        """A device broke; the guest has been told by NEEDS_RESET where there is such a thing."""
        self.journal.device_error(device, error)

    def guest_panicked(self, message: str, *, goes_on: bool = False) -> None:
        """By pvpanic. What follows a crash kernel's work is that kernel's doing."""
        if goes_on:
            self.journal.emit(EventKind.PANICKED, message)
        else:
            self.panic.report(message)

    def guest_silent(self, *, resets: bool) -> None:
        """The watchdog."""
        self.journal.emit(EventKind.WATCHDOG, "the guest has stopped to ping its watchdog")
        if resets:
            self.guest_ended(ExitReason.REBOOT, "reset by the watchdog")

    @property
    def guest_runs(self) -> bool:
        """Neither paused nor at its end."""
        return self.life.state is VMState.RUNNING

    def device_driven(self, device: str, there: bool) -> None:
        """A driver has come, or gone."""
        self.journal.device_driven(device, there)

    def device_slow(self, device: str, detail: str) -> None:
        """A device has kept the event loop; the log has told of it."""
        self.journal.emit(EventKind.DEVICE_SLOW, detail, device=device)

    def create_task(self, coro: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        """A task of this VM, ended with it."""
        return self.power.tasks.create(coro, f"{self._config.name}: {name}")

    # -- the end

    async def end(self, status: ExitStatus) -> None:
        """Stop the guest and tell everybody; the first status stays. Returns when that is done, whoever does it."""
        if not self.life.end(status):
            await self.stopped.wait()
            return
        try:
            async with admitted(to_end=True):  # of a thousand that are to end the loop has a few on its hands at a time
                await self._off()
        except Exception as exc:
            error = of_host("stopping", self._config.name, exc)
            self.life.status = failed(f"{status.detail}; its machine could not be stopped", error)
        finally:
            self._tell()

    async def _off(self) -> None:
        from aiovmm.runtime.awake import ends_within  # not at a start

        off = asyncio.ensure_future(self.power.off())
        if await ends_within(PATIENCE, off):
            off.result()
            return
        off.add_done_callback(lambda late: late.cancelled() or late.exception())  # whose end is not told any more
        assert self.life.status is not None
        hint = "the storage of its memory does not answer: it goes once that does"
        error = HostError(f"stopping the vCPUs of VM {self._config.name!r}", errno.ETIMEDOUT, hint)
        was = self.life.status
        self.life.status = ExitStatus(
            was.reason, f"{was.detail}; a vCPU is left in the host's kernel", was.error or error
        )

    def ended(self, status: ExitStatus) -> None:
        """It has ended in another process, where its machine is: everybody hears of it. The first status stays."""
        if self.life.end(status):
            self._tell()

    async def settled(self) -> None:
        """Wait until nobody is at work on an end any more."""
        for task in (self._task, self._limit):
            if task is not None:
                await asyncio.wait([task])

    async def _after(self, status: ExitStatus) -> None:
        self.panic.flush()
        panicked = self.panic.seen and status.reason in (ExitReason.SHUTDOWN, *_RESETS)
        policy = self._config.on_panic if panicked else self._config.on_reboot
        try:
            resets = status.reason is ExitReason.REBOOT or (panicked and status.reason in _RESETS)
            if resets and policy is RebootPolicy.RESTART:
                await self._reset()
                self._task = None  # the new guest may end as well
                return
            if panicked:
                status = ExitStatus(ExitReason.PANIC, f"its kernel panicked, then it was {status.detail}")
        except Exception as exc:
            status = failed("it could not be reset", of_host("resetting", self._config.name, exc))
        await self.end(status)

    async def _reset(self) -> None:
        async with self.transition:
            if await self.power.reset(self.stopped, lambda: self.life.state is VMState.PAUSED):
                self.panic.clear()
                self.journal.emit(EventKind.REBOOTED)

    def _handled(self, task: asyncio.Task[None]) -> None:
        """A task that was cancelled, perhaps before it began, or that failed where nothing should, has told nobody."""
        error = asyncio.CancelledError("its task was cancelled") if task.cancelled() else task.exception()
        if error is not None:
            self.give_up(error)

    def give_up(self, error: BaseException) -> None:
        """The end cannot be brought about as it should: it is told all the same, and vCPUs are asked to stop."""
        error = of_host("ending", self._config.name, error)
        self.life.end(ExitStatus(ExitReason.ERROR, f"its end could not be handled: {_said(error)}", error))
        if self.power.machine is not None:
            self.power.machine.processors.halt()
        self._tell()

    def _tell(self) -> None:
        """Everybody hears of it, whatever one of them makes of it. Idempotent."""
        if self.stopped.is_set():
            return
        assert self.life.status is not None
        with ExitStack() as told:  # the last first
            told.callback(self.journal.end, self.life.status)
            for console in self._consoles:
                told.callback(console.close)
            for plugged in self.power.plugged:
                told.callback(plugged.device.guest_ended, _last_words(self._config.name, self.life.status))
            told.callback(self.panic.flush)
            self.stopped.set()


def _last_words(name: str, status: ExitStatus) -> str:
    return f"VM {name!r} has ended ({status.reason.value}{': ' + status.detail if status.detail else ''})"


def of_host(doing: str, name: str, error: BaseException) -> BaseException:
    """A limit that was met, as the HostError that says what to do, with the error as its cause; any other error as it is."""
    if isinstance(error, OSError) and error.errno is None:  # a TimeoutError, say: its text is all there is
        return error
    limit = host_error(f"{doing} VM {name!r}", error)
    if limit is None or limit is error:
        return error
    limit.__cause__ = error
    return limit


def failed(what: str, error: BaseException) -> ExitStatus:
    """The status of a VM that ended because `what` met `error`."""
    if isinstance(error, asyncio.CancelledError):
        return ExitStatus(ExitReason.KILLED, f"{what}: its program cancelled it")
    return ExitStatus(ExitReason.ERROR, f"{what}: {_said(error)}", error)


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
