"""The event loop's end of the door between vCPU threads and devices: when it is opened, and for how long.

One eventfd per VM wakes the loop; `_drain` is then a turn of the VM's, of a few bounded batches of events from all vCPUs' rings.
`Dispatch.serve` hands each access to its device and completes those that a vCPU waits for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf
from time import perf_counter

from aiovmm.bus import Bus
from aiovmm.errors import StateError
from aiovmm.kvm.dispatch import DeviceErrorCallback, Dispatch, tell
from aiovmm.kvm.event_batch import EVENTS, have_reserve
from aiovmm.kvm.exits import FinalExit
from aiovmm.kvm.vmfd import VmFd
from aiovmm.native import lib
from aiovmm.runtime.fair import Account
from aiovmm.runtime.patience import DOZE, LONGEST_DOZE
from aiovmm.runtime.turns import BUDGET, Job

__all__ = ["ExitLoop"]

_FULL = EVENTS // 2  # that many had no room for more, reports apart: then the loop's other work has its turn
_STAYS = 16  # drains in one turn of the loop, while the guest has something again at once
TURN = 0.0005
"""Seconds of one VM in one turn of the loop, an exit that is being served apart; what is left waits for its next turn, so
that a guest's flood takes no more than its share. One that has taken TURN more than that rests for as long as it was over."""


class ExitLoop:
    """Serves the exits of one VM. `open` and everything after it run in the event loop's thread.

    `on_exit(vcpu_index, exit)` is told each exit that ended a vCPU of its own accord (never Stopped), `on_eoi(vector)` the end
    of each level-triggered interrupt, `on_device_error(range, exception)` what a device raised, `on_memory_lost()`
    once that a region of memory is not there any more and reads as zeros (native/src/guard.h), `on_failure(exception)` that
    exits of the guest's are lost, so that it cannot go on: there was no memory to serve them. What these raise goes to the event
    loop's exception handler.

    A device may also be a bus.BatchDevice, RunDevice or NotingDevice. Without the second, runs of posted writes come as single
    ones; without the third, a noted read comes as a read whose answer is dropped. Only a synchronous access may return an
    awaitable: its guest waits, so there is one a vCPU at most. From a posted write it is an error, for a guest could pile
    them up.
    """

    def __init__(
        self,
        vm: VmFd,
        bus: Bus,
        *,
        on_exit: Callable[[int, FinalExit], None],
        on_device_error: DeviceErrorCallback,
        on_eoi: Callable[[int], None] | None = None,
        on_memory_lost: Callable[[], None] | None = None,
        on_failure: Callable[[Exception], None] | None = None,
        account: Account | None = None,
    ) -> None:
        self._vm = vm
        self._account = account or Account()  # of its turns, which it shares with the VM's devices
        self._bus = bus
        self._dispatch = Dispatch(vm, bus, on_exit, on_device_error, on_eoi, on_memory_lost)
        self._on_failure = on_failure or _raise
        self._loop: asyncio.AbstractEventLoop | None = None
        self._doze: asyncio.TimerHandle | None = None
        self._dozes = 1  # times DOZE that it lasts
        self._looks = False  # it is over
        self._job: Job | None = None  # while it is open
        self._resting: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Begin to serve, on the running loop, and publish the bus's ranges now and whenever they change. Raises StateError."""
        if self._loop is not None:
            raise StateError("the exit loop is open already")
        have_reserve()
        self._loop = asyncio.get_running_loop()
        self._dispatch.is_open = True
        self._bus.on_change = self._publish
        self._publish()
        self._job = Job(self._drain, self._account)
        self._loop.add_reader(self._vm.exit_fd, self._called)

    async def served(self) -> None:
        """Wait until all that vCPUs did, which are parked, has been served."""
        dispatch = self._dispatch
        while True:
            try:
                served = dispatch.serve(inf)
            except Exception as exc:
                served = 0
                self._fail(exc)
            if not served and not dispatch.tasks:
                return
            if dispatch.tasks:
                await asyncio.wait(dispatch.tasks)

    async def close(self) -> None:
        """Stop serving; vCPUs that still run are stopped. Unfinished device writes are cancelled and awaited. Idempotent."""
        if self._loop is None:
            return
        self._loop.remove_reader(self._vm.exit_fd)
        self._loop = None
        for handle in (self._doze, self._resting, self._job):
            if isinstance(handle, Job):
                handle.close()
            elif handle is not None:
                handle.cancel()
        self._doze = self._resting = self._job = None
        self._dispatch.close()
        self._bus.on_change = None
        for vcpu in self._vm.vcpus.values():
            if vcpu.needs_end:
                vcpu.stop()
                vcpu.on_ended()
        await self._dispatch.cancel()

    def _called(self) -> None:
        """By a vCPU. The call is taken here if its turn comes later, or a rest is not over: the loop need not hear of it again
        until then."""
        job = self._job
        if job is not None:
            if self._resting is None:
                job.ready()
            if job.due or self._resting is not None:
                lib.avmm_event_take(self._vm.exit_fd)

    def _publish(self) -> None:
        self._vm.publish(self._bus.ranges())

    def _drain(self) -> None:
        """Serve what there is. Drivers make exits in rows; so after some, the next is looked for a moment here, which saves the
        way through the event loop and the wake-up. After that what is posted lazily wakes nobody for a while."""
        job = self._job
        if job is None or self._resting is not None:
            return
        turns, dispatch = job.turns, self._dispatch
        end = perf_counter() + (BUDGET if turns.contended else TURN)
        for left in reversed(range(_STAYS)):
            try:
                served = dispatch.serve(end)
            except Exception as exc:
                served = 0
                self._fail(exc)
            if self._loop is None:  # a callback has closed us
                return
            if self._looks:
                self._looks = False
                self._dozes = min(2 * self._dozes, LONGEST_DOZE) if served else 1
            if served and self._doze is None:  # before we linger: it also ends what an exception here would leave
                self._doze = self._loop.call_later(DOZE * self._dozes, self._look_again)
            if dispatch.rest is not None or not 0 < served < _FULL or not left or perf_counter() >= end:
                break
            if not turns.alone(self._account) or not lib.avmm_vm_linger(self._vm.native):
                break
        if self._doze is not None:
            lib.avmm_vm_doze(self._vm.native)
        self._end_turn(perf_counter() - end)

    def _end_turn(self, over: float) -> None:
        """The turn ends `over` seconds after it should have. Whoever rests still hears of one call: to take the eventfd from the
        loop and give it back, turn by turn, costs more, and the host's kernel a grace period of RCU each time."""
        assert self._loop is not None
        assert self._job is not None
        if over > TURN:
            self._resting = self._loop.call_later(over, self._go_on)
        elif self._dispatch.rest is not None:
            self._job.again()

    def _go_on(self) -> None:
        """The rest is over."""
        assert self._job is not None
        self._resting = None
        self._job.ready()

    def _look_again(self) -> None:
        self._doze = None
        self._looks = True
        if self._job is not None:
            self._job.ready()

    def _fail(self, error: Exception) -> None:
        """Exits are lost; that vCPUs have ended is still to be told."""
        if self._loop is not None and self._doze is None:
            self._doze = self._loop.call_later(DOZE, self._look_again)
        tell(self._on_failure, error)


def _raise(error: Exception) -> None:
    raise error
