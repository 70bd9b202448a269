"""Where events of vCPUs are taken to. Only who has some needs a batch: a thousand guests that sleep have none. So loops of all
threads share a few spare ones; and each thread has a reserve for when there is no memory for one more."""

from __future__ import annotations

import struct
import threading
from typing import Any

from aiovmm.native import ffi, lib
from aiovmm.native.room import room

__all__ = ["EVENT", "EVENTS", "EventBatch", "give_back", "have_reserve", "take_batch"]

EVENT = struct.Struct("<QQIIHBBI")  # struct avmm_event: address, data, count, seq, vcpu, kind, size, sync
EVENTS = 256  # in one drain, at most
_BYTES = 4096  # posted bytes gathered in one drain
_SPARE = 8  # batches that are kept for whoever has events next, in any thread
_LEAST = 8  # events, and such bytes, in the drain of a thread that gets no memory for more


class EventBatch:
    """Room for one drain: `view` is of its events, `data` of the bytes that runs of posted writes wrote. Raises MemoryError."""

    def __init__(self, *, is_reserve: bool = False) -> None:
        self.is_reserve = is_reserve
        self._events = room("struct avmm_event[]", _LEAST if is_reserve else EVENTS)
        self._bytes = room("uint8_t[]", _LEAST if is_reserve else _BYTES)
        self.view = memoryview(ffi.buffer(self._events)).cast("B")
        self.data = ffi.buffer(self._bytes)

    def drain(self, vm: Any) -> int:
        """How many there are now, from all vCPUs of the `struct avmm_vm *`."""
        events, size = (_LEAST, _LEAST) if self.is_reserve else (EVENTS, _BYTES)
        count: int = lib.avmm_vm_drain(vm, self._events, events, self._bytes, size)
        return count


_spare: list[EventBatch] = []


class _Reserve(threading.local):
    """What a thread serves its guests from when there is no memory: they are slower then, and none waits for ever, nor for its
    end. Made with the first exit loop of the thread."""

    def __init__(self) -> None:
        self.batches = [EventBatch(is_reserve=True)]


_reserve = _Reserve()


def have_reserve() -> None:
    """This thread has one from now on. Raises MemoryError."""
    assert _reserve.batches is not None, "it is made as it is looked at"


def take_batch() -> EventBatch:
    """A spare one, if no other thread takes the last: so it is not asked beforehand. Raises MemoryError if the thread's reserve
    is in use, too."""
    try:
        return _spare.pop()
    except IndexError:
        pass
    try:
        return EventBatch()
    except MemoryError:
        if not _reserve.batches:
            raise
        return _reserve.batches.pop()


def give_back(batch: EventBatch) -> None:
    """For whoever has events next."""
    if batch.is_reserve:
        _reserve.batches.append(batch)
    elif len(_spare) < _SPARE:
        _spare.append(batch)
