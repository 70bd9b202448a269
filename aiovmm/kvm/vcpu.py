"""A vCPU, and the thread that runs it. What an architecture knows of its registers is an object over it, in its room.

The thread is one native call (native/src/vcpu.h) that holds no GIL; all methods here belong to the event loop's thread.
`start`, `stop`, `pause` and `resume` are requests; `pause` and `join` can be awaited while an ExitLoop serves the VM, which is
what tells them that the thread has parked or ended.

    created ──start──► running ──stop, or an exit that ends it──► ended ──start──► running
                       running ──pause──► paused ──resume──► running
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import weakref
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Protocol

from aiovmm.errors import MORE_THREADS, HostError, KvmError, StateError
from aiovmm.kvm.exits import FinalExit, decode
from aiovmm.kvm.ioctl import call, error
from aiovmm.native import ffi, lib
from aiovmm.runtime.dataclass import dataclass
from aiovmm.runtime.threads import system_name

__all__ = ["Vcpu", "VcpuCounters"]


@dataclass(frozen=True)
class VcpuCounters:
    """What one vCPU has done: `exits` from KVM, of which accesses by how they were answered, and waits on a full ring."""

    exits: int
    sync: int
    posted: int
    shadow: int
    ignored: int
    missed: int
    full: int


class Vm(Protocol):
    """What a vCPU belongs to (vmfd.VmFd), and keeps."""

    native: Any
    name: str


class Vcpu:
    """One virtual processor. Made by VmFd.create_vcpu."""

    def __init__(self, vm: Vm, index: int, fd: int, run_size: int, ring_size: int) -> None:
        self.index = index
        self.fd = fd
        self._vm_name = vm.name
        code = ffi.new("int *", errno.EINVAL)
        power_of_two = ring_size > 0 and not ring_size & (ring_size - 1)
        new = lib.avmm_vcpu_new(vm.native, index, fd, run_size, ring_size, code) if power_of_two else ffi.NULL
        if new == ffi.NULL:
            os.close(fd)
            self.fd = -1
            raise error(f"setting up vCPU {index}", code[0])
        self.native = new
        self._vm = vm  # while the thread runs it reads the VM's table of ranges, and the guest the VM's memory
        self._final: FinalExit | None = None  # of the last run, once closed
        self._thread: threading.Thread | None = None
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
        return self._thread is not None and self._thread.is_alive()

    @property
    def thread_id(self) -> int | None:
        """What the system knows the thread by, once there is one; it may have ended."""
        return None if self._thread is None else self._thread.native_id

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
        if self._thread is None or self.running:
            raise StateError(f"vCPU {self.index} has not run to an end")
        return self._final or decode(lib.avmm_vcpu_final(self.native))

    def start(self) -> None:
        """Run the guest from the present state. With a pause in force the vCPU parks at once. Raises StateError, KvmError."""
        self._check_open()
        if self.running or not self._reported:
            raise StateError(f"vCPU {self.index} runs, or its last run has not been joined")
        lib.avmm_vcpu_arm(self.native)
        # A program that forgets its VM can still end: the thread is a daemon, and the guard ends it before the memory it uses
        # goes, be that by garbage collection or at the interpreter's exit.
        name = f"{self._vm_name}: vcpu-{self.index}" if self._vm_name else f"vcpu-{self.index}"
        thread = threading.Thread(target=_run, args=(self.native, system_name(name)), name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as exc:
            raise KvmError(f"starting the thread of vCPU {self.index}", errno.EAGAIN, MORE_THREADS) from exc
        self._thread, self._ended, self._reported = thread, None, False
        self._guard = weakref.finalize(self, _end_thread, os.getpid(), self.native, thread)

    def run_on(self, cpus: Iterable[int]) -> None:
        """Have the thread, which must be there, run on these processors of the host only. Raises HostError."""
        assert self._thread is not None, "it has been started"
        assert self._thread.native_id is not None
        try:
            os.sched_setaffinity(self._thread.native_id, cpus)
        except (OSError, OverflowError) as exc:
            if isinstance(exc, ProcessLookupError):  # the guest has ended already
                return
            there = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
            hint = f"cpus.affinity= has processors of the host; this process may use {there}"
            raise HostError(f"binding vCPU {self.index}", getattr(exc, "errno", errno.EINVAL), hint) from exc

    def stand_back(self, nice: int) -> None:
        """Have the thread, which must be there, run at the process's own nice value plus `nice`, or, from 20 on, only when the
        host has nothing else to do (SCHED_IDLE). No privilege is needed for that, but to take it back."""
        assert self._thread is not None, "it has been started"
        thread = self._thread.native_id
        assert thread is not None
        with suppress(ProcessLookupError):  # the guest has ended already
            if nice >= 20:
                os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
            elif nice:
                os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, 0) + nice))

    def stop(self) -> None:
        """Ask the thread to leave the guest for good, from whatever it does. Idempotent; `join` waits for it."""
        if self.fd >= 0:
            lib.avmm_vcpu_stop(self.native)

    async def join(self) -> FinalExit:
        """Wait until the run has ended and say why. Cancelling does not stop the vCPU. Raises StateError if never started."""
        if self._thread is None:
            raise StateError(f"vCPU {self.index} was never started")
        if not self._reported:
            if self._ended is None:
                self._ended = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._ended)
        return self.final

    def wait_blocking(self, timeout: float) -> FinalExit | None:
        """Like join, without an event loop or ExitLoop: blocks. None if the vCPU still runs after `timeout` seconds."""
        if self._thread is None:
            raise StateError(f"vCPU {self.index} was never started")
        self._thread.join(timeout)
        return None if self.running else self.on_ended()

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
        """The thread is about to end. Called by the ExitLoop, once a run."""
        self._join_thread()
        self._reported = True
        self._settle_parked()
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(self.final)
        return self.final

    def _join_thread(self) -> None:
        """Wait for a thread that is about to end. It needs the GIL for that, which waiting gives it."""
        if self._thread is not None:
            self._thread.join()
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
        return VcpuCounters(c.exits, c.sync, c.posted, c.shadow, c.ignored, c.missed, c.full)

    def close(self) -> None:
        """Stop if need be (this waits for the thread, which takes well below a millisecond) and give all back. Idempotent."""
        if self.fd < 0:
            return
        self.stop()
        self._join_thread()
        if self._thread is not None:
            self._final = self.final
        lib.avmm_vcpu_free(self.native)
        os.close(self.fd)
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


def _run(native: Any, name: bytes) -> None:
    lib.avmm_name_thread(name)
    lib.avmm_vcpu_run(native)


def _end_thread(pid: int, native: Any, thread: threading.Thread) -> None:
    if os.getpid() == pid:  # in a forked child, which ends or forgets its copy, there is no such thread
        lib.avmm_vcpu_stop(native)
        thread.join()
