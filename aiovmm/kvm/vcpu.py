"""A vCPU, and the thread that runs it. What an architecture knows of its registers is an object over it, in its room.

The thread is native (native/src/vcpu.h), and the interpreter knows nothing of it; all methods here belong to the event loop's
thread.
`start`, `stop`, `pause` and `resume` are requests; `pause` and `join` can be awaited while an ExitLoop serves the VM, which is
what tells them that the thread has parked or ended.

    created ──start──► running ──stop, or an exit that ends it──► ended ──start──► running
                       running ──pause──► paused ──resume──► running
"""

from __future__ import annotations

import asyncio
import errno
import os
import weakref
from collections.abc import Collection
from typing import Any, Protocol

from aiovmm.errors import MORE_THREADS, HostError, KvmError, StateError
from aiovmm.kvm.exits import FinalExit, decode
from aiovmm.kvm.ioctl import call, error
from aiovmm.native import ffi, lib
from aiovmm.native.room import room
from aiovmm.runtime.dataclass import dataclass
from aiovmm.runtime.threads import system_name

__all__ = ["ALONE", "Vcpu", "VcpuCounters"]

ALONE = -1
"""For `Vcpu.start`: nothing else may share a core of the host with it."""

_MOST_CPUS = 8192  # that Linux can be built for


@dataclass(frozen=True)
class VcpuCounters:
    """What one vCPU has done: `exits` from KVM, of which accesses by how they were answered, and waits on a full ring. On x86,
    where the host's processor tells of it: `bus_locks`, instructions that held up the memory of all processors (a locked access
    across cache lines), and `notifies`, times that one let no interrupt in for a whole window; a guest that does either without
    end is slowed."""

    exits: int
    sync: int
    posted: int
    shadow: int
    ignored: int
    missed: int
    full: int
    bus_locks: int = 0
    notifies: int = 0


class Vm(Protocol):
    """What a vCPU belongs to (vmfd.VmFd), and keeps."""

    native: Any
    name: str


class Vcpu:
    """One virtual processor. Made by VmFd.create_vcpu: the descriptor is its own unless it raises KvmError, MemoryError."""

    def __init__(self, vm: Vm, index: int, fd: int, run_size: int, ring_size: int) -> None:
        self.index = index
        self.fd = fd
        code = ffi.new("int *", errno.EINVAL)
        power_of_two = ring_size > 0 and not ring_size & (ring_size - 1)
        # Native code has its address for as long as it has the vCPU: this object and its VM keep each other, and both are closed.
        self._ring = room("uint64_t[]", ring_size * lib.AVMM_ENTRY_SIZE // 8) if power_of_two else ffi.NULL
        ring = self._ring, ring_size
        new = lib.avmm_vcpu_new(vm.native, index, fd, run_size, *ring, code) if power_of_two else ffi.NULL
        if new == ffi.NULL:
            self.fd = -1
            raise error(f"setting up vCPU {index}", code[0])
        self.native = new
        self._vm = vm  # while the thread runs it reads the VM's table of ranges, and the guest the VM's memory
        self._final: FinalExit | None = None  # of the last run, once closed
        self._started = False
        self._ended: asyncio.Future[FinalExit] | None = None
        self._parked: asyncio.Future[None] | None = None
        self._guard: weakref.finalize[..., Vcpu] | None = None
        self._reported = True  # the end of the latest run
        self._generation = 0
        self._paused = False

    # -- running --

    @property
    def running(self) -> bool:
        """Whether there is a thread, be it in the guest or parked."""
        return self.fd >= 0 and lib.avmm_vcpu_runs(self.native) != 0

    @property
    def thread_id(self) -> int | None:
        """What the system knows the thread by, while there is one."""
        return (lib.avmm_vcpu_tid(self.native) or None) if self.fd >= 0 else None

    @property
    def core(self) -> int:
        """For `start` of others that may share a core with it; 0 for one that anything may share one with."""
        return lib.avmm_vcpu_core(self.native) if self.running else 0

    @property
    def needs_end(self) -> bool:
        """Whether a run was started whose end nobody has been told yet."""
        return not self._reported

    @property
    def paused(self) -> bool:
        """Whether the thread is parked: the guest does not run, and its state may be read and set."""
        return self._paused

    @property
    def final(self) -> FinalExit:
        """Why the last run ended. Raises StateError before it has."""
        if not self._started or self.running:
            raise StateError(f"vCPU {self.index} has not run to an end")
        return self._final or decode(lib.avmm_vcpu_final(self.native))

    def start(self, nice: int = 0, *, core: int = 0) -> None:
        """Run the guest from the present state. With a pause in force the vCPU parks at once. The thread runs at the
        process's own nice value plus `nice`, or, from 20 on, only when the host has nothing else to do (SCHED_IDLE). `core`
        is what may share a core of the host with it: 0 anything, ALONE nothing, or what the vCPU may that has this `core`. Raises
        StateError, KvmError."""
        self._check_open()
        if self.running or not self._reported:
            raise StateError(f"vCPU {self.index} runs, or its last run has not been joined")
        self._join_thread()
        name = f"{self._vm.name}: vcpu-{self.index}" if self._vm.name else f"vcpu-{self.index}"
        if failed := lib.avmm_vcpu_start(self.native, system_name(name), nice, core):
            raise KvmError(f"starting the thread of vCPU {self.index}", failed, MORE_THREADS)
        self._started, self._ended, self._reported = True, None, False
        # A program that forgets its VM can still end: the guard ends the thread before the memory it uses goes, be that by
        # garbage collection or at the interpreter's exit. It keeps the ring, which in a cycle might go before us.
        self._guard = weakref.finalize(self, _end_thread, self.native, self._ring)

    def run_on(self, cpus: Collection[int]) -> None:
        """Have the thread, which has been started, run on these processors of the host only. Raises HostError."""
        mask = _mask(cpus)
        if failed := lib.avmm_vcpu_run_on(self.native, mask, len(mask)):
            there = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
            hint = f"cpus.affinity= has processors of the host; this process may use {there}"
            raise HostError(f"binding vCPU {self.index}", failed, hint)

    def stop(self) -> None:
        """Ask the thread to leave the guest for good, from whatever it does. Idempotent; `join` waits for it."""
        if self.fd >= 0:
            lib.avmm_vcpu_stop(self.native)

    async def join(self) -> FinalExit:
        """Wait until the run has ended and say why. Cancelling does not stop the vCPU. Raises StateError if never started."""
        if not self._started:
            raise StateError(f"vCPU {self.index} was never started")
        if not self._reported:
            if self._ended is None:
                self._ended = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._ended)
        return self.final

    def wait_blocking(self, timeout: float) -> FinalExit | None:
        """Like join, without an event loop or ExitLoop: blocks. None if the vCPU still runs after `timeout` seconds."""
        if not self._started:
            raise StateError(f"vCPU {self.index} was never started")
        return self.on_ended() if lib.avmm_vcpu_join(self.native, int(timeout * 1e9)) == 0 else None

    async def pause(self) -> None:
        """Park: on return the guest does not run and an instruction in flight is complete (an access that waits for its device
        included, so never await this in a device's write). Idempotent. A vCPU that ends meanwhile, or does not run, counts as
        parked. Raises StateError if it is resumed first."""
        self._check_open()
        if self._paused:
            return
        if self._parked is None:
            self._generation += 1
            lib.avmm_vcpu_pause(self.native, self._generation)
            if not self.running:
                self._paused = True
                return
            self._parked = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._parked)

    def resume(self) -> None:
        """Go on after `pause`. Idempotent."""
        self._check_open()
        self._paused = False
        lib.avmm_vcpu_resume(self.native)
        parked, self._parked = self._parked, None
        if parked is not None and not parked.done():
            parked.set_exception(StateError(f"vCPU {self.index} was resumed before it had paused"))
            parked.exception()  # its waiters raise it; if there are none it is nobody's loss

    def on_parked(self, generation: int) -> None:
        """The thread has parked for pause request `generation`. Called by the ExitLoop."""
        if generation == self._generation and self._parked is not None:
            self._settle_parked()

    def on_ended(self) -> FinalExit:
        """The thread has left the guest, or was told to. Called by the ExitLoop, once a run. It is joined later, by `close`
        or the next `start`: that takes until the host has given it a processor once more."""
        if self.running:
            self._join_thread()
        self._reported = True
        self._settle_parked()
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(self.final)
        return self.final

    def _join_thread(self) -> None:
        """Wait for a thread that is about to end, if there is one."""
        lib.avmm_vcpu_join(self.native, -1)
        if self._guard is not None:
            self._guard.detach()

    def _settle_parked(self) -> None:
        parked, self._parked = self._parked, None
        if parked is not None:
            self._paused = True
            if not parked.done():
                parked.set_result(None)

    def complete(self, seq: int, data: int) -> None:
        """Answer synchronous exit `seq`. An answer that nobody waits for any more is dropped."""
        if self.fd >= 0:
            lib.avmm_vcpu_complete(self.native, seq, data)

    @property
    def counters(self) -> VcpuCounters:
        """A snapshot, also while running."""
        self._check_open()
        c = lib.avmm_vcpu_counters(self.native)
        return VcpuCounters(c.exits, c.sync, c.posted, c.shadow, c.ignored, c.missed, c.full, c.bus_locks, c.notifies)

    def close(self) -> None:
        """Stop if need be (this waits for the thread, which takes well below a millisecond) and give all back. Idempotent."""
        if self.fd < 0:
            return
        self.stop()
        self._join_thread()
        if self._started:
            self._final = self.final
        lib.avmm_vcpu_free(self.native)
        os.close(self.fd)
        self._ring = None
        self.native, self.fd = None, -1  # None: native code refuses it, where NULL would be followed

    # -- state --

    def checked_fd(self) -> int:
        """The fd, when using it would not wait for the guest: KVM holds a vCPU's lock for as long as it runs. Raises
        StateError."""
        self._check_open()
        if self.running and not self._paused:
            raise StateError(f"vCPU {self.index} is running; pause it first")
        return self.fd

    def ioctl(self, request: int, argument: Any, operation: str, hints: dict[int, str] | None = None) -> int:
        """An ioctl on it, such as `operation` ("setting the registers") says. Raises KvmError, StateError."""
        return call(self.checked_fd(), request, argument, f"{operation} of vCPU {self.index}", hints)

    def open_native(self) -> Any:
        """What native code knows it by. Raises StateError once it is closed."""
        self._check_open()
        return self.native

    def _check_open(self) -> None:
        if self.fd < 0:
            raise StateError(f"vCPU {self.index} is closed")


def _mask(cpus: Collection[int]) -> bytes:
    """As the system takes it; beyond what any has there is one more, which it refuses."""
    bits = sum(1 << min(cpu, _MOST_CPUS) for cpu in set(cpus))
    return bits.to_bytes(_MOST_CPUS // 8 + 1, "little")


def _end_thread(native: Any, _ring: Any) -> None:
    if lib.avmm_vcpu_runs(native):
        lib.avmm_vcpu_stop(native)
    lib.avmm_vcpu_join(native, -1)
