"""What vCPUs have done, given to whom it is for: an access to its device, and the answer to the vCPU that waits for it; all else
to the owner of the VM.

What a device raises stays here: the guest reads ones, or its write is dropped, and the owner is told.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from time import perf_counter
from typing import Any

from aiovmm.bus import Bus, Range, Space
from aiovmm.errors import GuestError
from aiovmm.kvm.event_batch import EVENT, EVENTS, EventBatch, give_back, take_batch
from aiovmm.kvm.exits import FinalExit, Stopped
from aiovmm.kvm.vmfd import VmFd
from aiovmm.native import lib

__all__ = ["DeviceErrorCallback", "Dispatch", "tell"]

_SPACE = (Space.PIO, Space.PIO, Space.MMIO, Space.MMIO)  # by kind of event

DeviceErrorCallback = Callable[[Range, Exception], None]


class Dispatch:
    """Of one VM: `serve` is called by its ExitLoop, which says what is told to whom."""

    def __init__(
        self,
        vm: VmFd,
        bus: Bus,
        on_exit: Callable[[int, FinalExit], None],
        on_device_error: DeviceErrorCallback,
        on_eoi: Callable[[int], None] | None,
        on_memory_lost: Callable[[], None] | None,
    ) -> None:
        self._vm = vm
        self._bus = bus
        self._on_exit = on_exit
        self._on_device_error = on_device_error
        self._on_eoi = on_eoi
        self._on_memory_lost = on_memory_lost
        self.is_open = False
        self.rest: Iterator[tuple[Any, ...]] | None = None
        """Of a batch, what was left when its turn was over."""
        self.tasks: set[asyncio.Future[Any]] = set()
        """Accesses that their devices have not finished yet."""
        self._touched: dict[Range, None] = {}
        self._batch: EventBatch | None = None  # while there is something in it

    def close(self) -> None:
        """Give out nothing more."""
        self.is_open = False
        self.rest = None

    async def cancel(self) -> None:
        """End what devices have not finished."""
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def serve(self, end: float) -> int:
        """One batch, or what was left of one: how many events it had. At `end` it leaves what it has not given out yet. Where it
        raises, events are lost: there was no memory for one, say, and its vCPU would wait for ever."""
        try:
            events, self.rest = self.rest, None
            count, batch = EVENTS, self._batch
            if events is None or batch is None:
                self._batch = batch = take_batch()
                count = batch.drain(self._vm.native)
                events = EVENT.iter_unpack(batch.view[: count * EVENT.size])
            for event in events:
                kind = event[5]
                if kind <= lib.AVMM_MMIO_WRITE:
                    if kind & 1:
                        self._write(*event)
                    else:
                        self._read(*event)
                else:
                    self._control(kind, event[4], event[0], event[1])
                if not self.is_open:  # a callback has closed us
                    return 0
                if count > 1 and not batch.is_reserve and perf_counter() >= end:
                    self.rest = events
                    break
            if self._touched:
                self._end_batch()
            return count
        except Exception:
            self.rest = None
            raise
        finally:
            if self.rest is None and self._batch is not None:
                give_back(self._batch)
                self._batch = None

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
            self.tasks.discard(task)
            answer = _ones(size)
            exc = None if task.cancelled() else task.exception()
            if isinstance(exc, Exception):
                tell(self._on_device_error, rng, exc)
            elif exc is None and size and not task.cancelled():
                value = self._try(rng, _checked, rng, task.result(), size)
                answer = answer if value is None else value
            vcpu.complete(seq, answer)

        task = asyncio.ensure_future(pending)
        self.tasks.add(task)
        task.add_done_callback(finished)

    def _control(self, kind: int, index: int, address: int, data: int) -> None:
        if kind == lib.AVMM_NO_SYNDROME:
            self._refused(index, address)
        elif kind == lib.AVMM_EOI:
            if self._on_eoi is not None:
                tell(self._on_eoi, data)
        elif kind == lib.AVMM_LOST:
            if self._on_memory_lost is not None:
                tell(self._on_memory_lost)
        elif kind == lib.AVMM_PARKED:
            self._vm.vcpus[index].on_parked(data)
        else:
            final = self._vm.vcpus[index].on_ended()
            if not isinstance(final, Stopped):
                tell(self._on_exit, index, final)

    def _refused(self, index: int, address: int) -> None:
        """An access that no device can be told of has become an abort of the guest's. Where there is a device it is its driver's
        error, or that of a program which has its registers; elsewhere nobody asked for anything."""
        rng = self._bus.find(Space.MMIO, address)
        if rng is not None:
            reason = (
                f"vCPU {index} accessed it at {address:#x} by an instruction that registers of devices do not take (one of two "
                "registers or of vectors, or that also changes its address): the guest was given an external abort"
            )
            tell(self._on_device_error, rng, GuestError(reason))

    def _try(self, rng: Range, call: Callable[..., Any], *args: Any) -> Any:
        """The result of a device's method; None if it raises, which the owner is told."""
        try:
            return call(*args)
        except Exception as exc:
            tell(self._on_device_error, rng, exc)
            return None

    def _end_batch(self) -> None:
        touched, self._touched = self._touched, {}
        for rng in touched:
            end_of_batch = getattr(rng.device, "end_of_batch", None)
            if end_of_batch is not None:
                self._try(rng, end_of_batch)


def tell(callback: Callable[..., None], *args: Any) -> None:
    """Call one of the owner's callbacks: its error must not cost the exits that are still to be given out."""
    try:
        callback(*args)
    except Exception as exc:
        context = {"message": "a callback of ExitLoop failed", "exception": exc}
        asyncio.get_running_loop().call_exception_handler(context)


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
