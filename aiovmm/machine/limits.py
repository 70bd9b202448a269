"""The limits of a VM that go by the clock, and what happens at them.

`IdleClock` is pure: it is told now and then what the guest has done, and says when to look again, or that it has been idle for
too long. It looks twenty times in that time, so the end comes at most a twentieth of it late. Time in which nobody looked
(runtime/awake.py) is not the guest's, neither of its idleness nor of its life.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from aiovmm.config.limits import LimitsConfig
from aiovmm.lifecycle import ExitReason, ExitStatus, VMState
from aiovmm.runtime.awake import Awake, counted

if TYPE_CHECKING:
    from aiovmm.console import Console
    from aiovmm.kvm import Vcpu
    from aiovmm.machine.ending import Ending

__all__ = ["IdleClock", "Limits"]

_LOOKS = 20
_SHORTEST = 0.005  # seconds between two looks
_THREAD_CLOCK = (
    6  # of processor time, behind a thread's number inverted (linux/posix-timers.h); glibc's way needs it alive
)
_BUSY = 0.05
"""Of one processor: an idle kernel's timers take a hundredth, and so does a monitor of this kind."""


class IdleClock:
    """`limit` seconds, all times in seconds of one clock; `ran` is the processor time of the thread that looks."""

    def __init__(self, limit: float, now: float, ran: float, done: int, worked: float) -> None:
        self.limit = limit
        self._since = self._looked = now
        self._ran = ran
        self._done, self._worked = done, worked
        self._due = max(limit / _LOOKS, _SHORTEST)

    def look(self, now: float, ran: float, done: int, worked: float) -> float | None:
        """Seconds to the next look; None: it has been idle for `limit`. `done`: what it has got and given until now; `worked`:
        seconds that its processors have had. Either may begin anew, with a reset, which is no idleness."""
        passed = now - self._looked
        self._since += passed - counted(passed, self._due, ran - self._ran)
        if done != self._done or worked < self._worked or worked - self._worked > _BUSY * passed:
            self._since = now
        self._looked, self._ran, self._done, self._worked = now, ran, done, worked
        left = self.limit - (now - self._since)
        self._due = max(min(self.limit / _LOOKS, left), _SHORTEST)
        return self._due if left > 0 else None


class Limits:
    """Of one VM, from its first start to its end. `set` may come at any time."""

    def __init__(self, config: LimitsConfig, ending: Ending, consoles: tuple[Console, ...]) -> None:
        self.config = config
        self._ending = ending
        self._consoles = consoles
        self._timers: list[asyncio.TimerHandle] = []
        self._idle: IdleClock | None = None
        self._life: Awake | None = None

    def set(self, config: LimitsConfig) -> None:
        """These from now on. What has passed of its life counts; idleness begins anew."""
        self.config = config
        power = self._ending.power
        if power.parts is not None:
            power.parts.exits_limit = config.exits
        if power.machine is not None:
            power.machine.limit_exits(config.exits)
        if power.began:
            self.begin()

    def begin(self) -> None:
        """The guest runs."""
        self.close()
        if self._ending.life.state is VMState.STOPPED:
            return
        if self.config.lifetime is not None:
            if self._life is None:
                self._life = Awake.begun(self.config.lifetime, self._ending.power.uptime)
            self._life.limit = self.config.lifetime
            self._grow_older(self._life)
        else:
            self._life = None  # nobody looks meanwhile, and all of it is its life
        if self.config.idle is not None:
            self._idle = IdleClock(self.config.idle, _now(), time.thread_time(), *self._activity())
            self._later(self.config.idle / _LOOKS, self._look)

    def close(self) -> None:
        """Look no more. Idempotent."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        self._timers.append(asyncio.get_running_loop().call_later(seconds, call))

    def _grow_older(self, life: Awake) -> None:
        left = life.look()
        if left is None:
            self._end(ExitReason.LIFETIME, f"it has lived for the {life.limit:g} s that it may")
        else:
            self._later(left, partial(self._grow_older, life))

    def _look(self) -> None:
        self._timers = [timer for timer in self._timers if timer.when() > _now()]
        assert self._idle is not None
        if self._ending.life.state is VMState.PAUSED or self._ending.transition.locked():  # that is not its own doing
            self._idle = IdleClock(self._idle.limit, _now(), time.thread_time(), *self._activity())
        left = self._idle.look(_now(), time.thread_time(), *self._activity())
        if left is None:
            self._end(ExitReason.IDLE, f"it has done nothing for {self._idle.limit:g} s")
        else:
            self._later(left, self._look)

    def _end(self, reason: ExitReason, detail: str) -> None:
        self.close()
        self._ending.limit_met(ExitStatus(reason, detail))

    def _activity(self) -> tuple[int, float]:
        """What it has got and given, in bytes and chains, and what its processors have had."""
        done = sum(console.bytes_out + console.bytes_in for console in self._consoles)
        machine = self._ending.power.machine
        if machine is None:
            return done, 0.0
        for plugged in self._ending.power.plugged:
            done += sum(queue.popped + queue.pushed for queue in machine.devices.queue_counters(plugged.id))
        return done, sum(_worked(vcpu) for vcpu in machine.vcpus)


def _worked(vcpu: Vcpu) -> float:
    thread = vcpu.thread_id
    if thread is not None:
        with suppress(OSError):  # it has ended
            return time.clock_gettime(~thread << 3 | _THREAD_CLOCK)
    return 0.0


def _now() -> float:
    return asyncio.get_running_loop().time()
