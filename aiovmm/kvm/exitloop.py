"""The event loop's end of the door between vCPU threads and devices.

One eventfd per VM wakes the loop; `_drain` then takes a bounded batch of events from all vCPUs' rings, hands each access to
its device through the bus, and completes those that a vCPU waits for. What a device raises stays here: the guest reads ones,
or its write is dropped, and `on_device_error` is told.
"""

from __future__ import annotations

import asyncio
import inspect
import struct
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from math import inf
from time import perf_counter
from typing import Any

from aiovmm.bus import Bus, Range, Space
from aiovmm.errors import GuestError, StateError
from aiovmm.kvm.exits import FinalExit, Stopped
from aiovmm.kvm.vmfd import VmFd
from aiovmm.native import ffi, lib
from aiovmm.native.room import room
from aiovmm.runtime.fair import Account
from aiovmm.runtime.patience import DOZE, LONGEST_DOZE
from aiovmm.runtime.turns import BUDGET, Job

__all__ = ["ExitLoop"]

_EVENT = struct.Struct("<QQIIHBBI")  # struct avmm_event: address, data, count, seq, vcpu, kind, size, sync
_BATCH = 256  # events in one drain
_FULL = _BATCH // 2  # that many had no room for more, reports apart: then the loop's other work has its turn
_BYTES = 4096  # posted bytes gathered in one drain
_SPARE = 8  # batches that are kept for whoever has events next, in any thread
_LEAST = 8  # events, and such bytes, in the drain of a thread that gets no memory for more
_STAYS = 16  # drains in one turn of the loop, while the guest has something again at once
TURN = 0.0005
"""Seconds of one VM in one turn of the loop, an exit that is being served apart; what is left waits for its next turn, so
that a guest's flood takes no more than its share. One that has taken TURN more than that rests for as long as it was over."""

_SPACE = (Space.PIO, Space.PIO, Space.MMIO, Space.MMIO)  # by kind of event

DeviceErrorCallback = Callable[[Range, Exception], None]


class _Batch:
    """Where events are taken to. Only who has some needs one: a thousand guests that sleep have none. Raises MemoryError."""

    def __init__(self, *, is_reserve: bool = False) -> None:
        self.is_reserve = is_reserve
        self._events = room("struct avmm_event[]", _LEAST if is_reserve else _BATCH)
        self._bytes = room("uint8_t[]", _LEAST if is_reserve else _BYTES)
        self.view = memoryview(ffi.buffer(self._events)).cast("B")
        self.data = ffi.buffer(self._bytes)

    def drain(self, vm: Any) -> int:
        """How many there are now."""
        events, size = (_LEAST, _LEAST) if self.is_reserve else (_BATCH, _BYTES)
        count: int = lib.avmm_vm_drain(vm, self._events, events, self._bytes, size)
        return count


_spare: list[_Batch] = []


class _Reserve(threading.local):
    """What a thread serves its guests from when there is no memory: they are slower then, and none waits for ever, nor for its
    end. Made with the first exit loop of the thread."""

    def __init__(self) -> None:
        self.batches = [_Batch(is_reserve=True)]


_reserve = _Reserve()


def _batch() -> _Batch:
    """A spare one, if no other thread takes the last: so it is not asked beforehand. Raises MemoryError if the thread's reserve
    is in use, too."""
    try:
        return _spare.pop()
    except IndexError:
        pass
    try:
        return _Batch()
    except MemoryError:
        if not _reserve.batches:
            raise
        return _reserve.batches.pop()


def _give_back(batch: _Batch) -> None:
    if batch.is_reserve:
        _reserve.batches.append(batch)
    elif len(_spare) < _SPARE:
        _spare.append(batch)


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
        self._on_exit = on_exit
        self._on_device_error = on_device_error
        self._on_eoi = on_eoi
        self._on_memory_lost = on_memory_lost
        self._on_failure = on_failure or _raise
        self._loop: asyncio.AbstractEventLoop | None = None
        self._doze: asyncio.TimerHandle | None = None
        self._dozes = 1  # times DOZE that it lasts
        self._looks = False  # it is over
        self._job: Job | None = None  # while it is open
        self._resting: asyncio.TimerHandle | None = None
        self._rest: Iterator[tuple[Any, ...]] | None = None  # of a batch whose turn is over
        self._tasks: set[asyncio.Future[Any]] = set()
        self._touched: dict[Range, None] = {}
        self._batch: _Batch | None = None  # while there is something in it

    def open(self) -> None:
        """Begin to serve, on the running loop, and publish the bus's ranges now and whenever they change. Raises StateError."""
        if self._loop is not None:
            raise StateError("the exit loop is open already")
        assert _reserve.batches is not None, "it is there from now on"
        self._loop = asyncio.get_running_loop()
        self._bus.on_change = self._publish
        self._publish()
        self._job = Job(self._drain, self._account)
        self._loop.add_reader(self._vm.exit_fd, self._called)

    async def served(self) -> None:
        """Wait until all that vCPUs did, which are parked, has been served."""
        while self._serve(inf) or self._tasks:
            if self._tasks:
                await asyncio.wait(self._tasks)

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
        self._doze = self._resting = self._job = self._rest = None
        self._bus.on_change = None
        for vcpu in self._vm.vcpus.values():
            if vcpu.needs_end:
                vcpu.stop()
                vcpu.on_ended()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

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
        turns = job.turns
        end = perf_counter() + (BUDGET if turns.contended else TURN)
        for left in reversed(range(_STAYS)):
            served = self._serve(end)
            if self._loop is None:  # a callback has closed us
                return
            if self._looks:
                self._looks = False
                self._dozes = min(2 * self._dozes, LONGEST_DOZE) if served else 1
            if served and self._doze is None:  # before we linger: it also ends what an exception here would leave
                self._doze = self._loop.call_later(DOZE * self._dozes, self._look_again)
            if self._rest is not None or not 0 < served < _FULL or not left or perf_counter() >= end:
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
        elif self._rest is not None:
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

    def _serve(self, end: float) -> int:
        """One batch, or what was left of one: how many events it had. At `end` it leaves what it has not given out yet."""
        try:
            events, self._rest = self._rest, None
            count, batch = _BATCH, self._batch
            if events is None or batch is None:
                self._batch = batch = _batch()
                count = batch.drain(self._vm.native)
                events = _EVENT.iter_unpack(batch.view[: count * _EVENT.size])
            for event in events:
                kind = event[5]
                if kind <= lib.AVMM_MMIO_WRITE:
                    if kind & 1:
                        self._write(*event)
                    else:
                        self._read(*event)
                else:
                    self._control(kind, event[4], event[0], event[1])
                if self._loop is None:
                    return 0
                if count > 1 and not batch.is_reserve and perf_counter() >= end:
                    self._rest = events
                    break
            if self._touched:
                self._end_batch()
            return count
        except Exception as exc:  # where there is no memory for an event, say: its vCPU would wait for ever
            self._fail(exc)
            return 0
        finally:
            if self._rest is None and self._batch is not None:
                _give_back(self._batch)
                self._batch = None

    def _fail(self, error: Exception) -> None:
        """Exits are lost; that vCPUs have ended is still to be told."""
        self._rest = None
        if self._loop is not None and self._doze is None:
            self._doze = self._loop.call_later(DOZE, self._look_again)
        self._tell(self._on_failure, error)

    def _read(self, address: int, data: int, _n: int, seq: int, index: int, kind: int, size: int, sync: int) -> None:
        answer: int | Awaitable[bytes] | None = None
        rng = self._bus.find(_SPACE[kind], address, size)
        if rng is not None:
            self._touched[rng] = None
            if sync:
                answer = self._try(rng, _checked_read, rng, address - rng.base, size)
            else:
                self._try(rng, _note_read, rng, address - rng.base, data.to_bytes(size, "little"))
        if not sync:
            return
        if answer is None or isinstance(answer, int):
            self._vm.vcpus[index].complete(seq, _ones(size) if answer is None else answer)
        elif rng is not None:
            self._finish_later(rng, answer, index, seq, size)

    def _write(self, address: int, data: int, n: int, seq: int, index: int, kind: int, size: int, sync: int) -> None:
        pending: Awaitable[None] | None = None
        rng = self._bus.find(_SPACE[kind], address, size)
        if rng is not None:
            self._touched[rng] = None
            if n > 1:
                assert self._batch is not None, "it is what the event came from"
                self._write_many(rng, address - rng.base, bytes(self._batch.data[data : data + n * size]), size)
            elif sync:
                pending = self._try(rng, rng.device.write, address - rng.base, data.to_bytes(size, "little"))
            else:
                self._try(rng, _write_posted, rng, address - rng.base, data.to_bytes(size, "little"))
        if rng is not None and pending is not None:
            self._finish_later(rng, pending, index, seq)
        elif sync:
            self._vm.vcpus[index].complete(seq, 0)

    def _write_many(self, rng: Range, offset: int, data: bytes, size: int) -> None:
        write_many = getattr(rng.device, "write_many", None)
        if write_many is not None:
            self._try(rng, write_many, offset, data, size)
            return
        for i in range(0, len(data), size):
            self._try(rng, _write_posted, rng, offset, data[i : i + size])

    def _finish_later(
        self, rng: Range, pending: Awaitable[bytes] | Awaitable[None], index: int, seq: int, size: int = 0
    ) -> None:
        """Run an asynchronous read of `size` bytes, or write, to its end; then let the vCPU go on."""
        vcpu = self._vm.vcpus[index]

        def finished(task: asyncio.Future[Any]) -> None:
            self._tasks.discard(task)
            answer = _ones(size)
            exc = None if task.cancelled() else task.exception()
            if isinstance(exc, Exception):
                self._tell(self._on_device_error, rng, exc)
            elif exc is None and size and not task.cancelled():
                value = self._try(rng, _checked, rng, task.result(), size)
                answer = answer if value is None else value
            vcpu.complete(seq, answer)

        task = asyncio.ensure_future(pending)
        self._tasks.add(task)
        task.add_done_callback(finished)

    def _control(self, kind: int, index: int, address: int, data: int) -> None:
        if kind == lib.AVMM_NO_SYNDROME:
            self._refused(index, address)
        elif kind == lib.AVMM_EOI:
            if self._on_eoi is not None:
                self._tell(self._on_eoi, data)
        elif kind == lib.AVMM_LOST:
            if self._on_memory_lost is not None:
                self._tell(self._on_memory_lost)
        elif kind == lib.AVMM_PARKED:
            self._vm.vcpus[index].on_parked(data)
        else:
            final = self._vm.vcpus[index].on_ended()
            if not isinstance(final, Stopped):
                self._tell(self._on_exit, index, final)

    def _refused(self, index: int, address: int) -> None:
        """An access that no device can be told of has become an abort of the guest's. Where there is a device it is its driver's
        error, or that of a program which has its registers; elsewhere nobody asked for anything."""
        rng = self._bus.find(Space.MMIO, address)
        if rng is not None:
            reason = (
                f"vCPU {index} accessed it at {address:#x} by an instruction that registers of devices do not take (one of two "
                "registers or of vectors, or that also changes its address): the guest was given an external abort"
            )
            self._tell(self._on_device_error, rng, GuestError(reason))

    def _try(self, rng: Range, call: Callable[..., Any], *args: Any) -> Any:
        """The result of a device's method; None if it raises, which the owner is told."""
        try:
            return call(*args)
        except Exception as exc:
            self._tell(self._on_device_error, rng, exc)
            return None

    def _tell(self, callback: Callable[..., None], *args: Any) -> None:
        """Call one of the owner's callbacks: its error must not cost the exits that are still to be given out."""
        try:
            callback(*args)
        except Exception as exc:
            context = {"message": f"a callback of {type(self).__name__} failed", "exception": exc}
            asyncio.get_running_loop().call_exception_handler(context)

    def _end_batch(self) -> None:
        touched, self._touched = self._touched, {}
        for rng in touched:
            end_of_batch = getattr(rng.device, "end_of_batch", None)
            if end_of_batch is not None:
                self._try(rng, end_of_batch)


def _raise(error: Exception) -> None:
    raise error


def _ones(size: int) -> int:
    return (1 << 8 * size) - 1


def _checked_read(rng: Range, offset: int, size: int) -> int | Awaitable[bytes]:
    data = rng.device.read(offset, size)
    if type(data) is not bytes and inspect.isawaitable(data):
        return data
    return _checked(rng, data, size)


def _checked(rng: Range, data: Any, size: int) -> int:
    if len(data) != size:
        raise ValueError(f"{rng.name}: a read of {size} bytes gave {len(data)}")
    return int.from_bytes(data, "little")


def _note_read(rng: Range, offset: int, data: bytes) -> None:
    note_read = getattr(rng.device, "note_read", None)
    if note_read is not None:
        note_read(offset, data)
    else:
        rng.device.read(offset, len(data))


def _write_posted(rng: Range, offset: int, data: bytes) -> None:
    pending = rng.device.write(offset, data)
    if pending is not None:
        if isinstance(pending, Coroutine):
            pending.close()
        raise TypeError(f"{rng.name}: a posted write cannot be awaited, for the guest has gone on")
