"""The vCPUs of a machine that is built: started, paused and resumed, one more and one less, and their end."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING

from aiovmm.config import CoreScheduling
from aiovmm.kvm import Vcpu
from aiovmm.kvm.exitloop import TURN
from aiovmm.kvm.vcpu import ALONE
from aiovmm.machine.halting import Halting
from aiovmm.machine.parts import MachineParts

if TYPE_CHECKING:
    from aiovmm.machine.board import Board

__all__ = ["Processors"]


class Processors:
    """All of one machine, which `halting` has; its board makes them."""

    def __init__(self, parts: MachineParts, board: Board, halting: Halting) -> None:
        self._parts = parts
        self._board = board
        self._halting = halting
        self._due: list[Vcpu] = []  # that are paused, and have not been started yet

    async def start(self, *, paused: bool = False) -> None:
        """Let all vCPUs run, or, `paused`, as soon as they are resumed, which starts their threads. Where there are many the
        event loop has turns between them, and the machine may be halted in one: then no instruction is run. Raises
        HostError."""
        with self._halting.starting():
            await self._start(paused)

    async def _start(self, paused: bool) -> None:
        end = perf_counter() + TURN
        for vcpu in reversed(self._halting.vcpus):  # the boot processor last: the others wait for its start-up message
            if perf_counter() >= end:
                await asyncio.sleep(0)
                end = perf_counter() + TURN
            if self.halted:
                return
            if paused:
                await vcpu.pause()  # returns at once, for it does not run
                self._due.append(vcpu)
            else:
                self._run(vcpu)

    def _run(self, vcpu: Vcpu) -> None:
        cpus = self._parts.config.cpus
        apart = cpus.core_scheduling
        vcpu.start(cpus.vcpu_nice, core=0 if apart is CoreScheduling.OFF else self._core(apart))
        if cpus.affinity and (hosts := dict(cpus.affinity).get(vcpu.index)):
            vcpu.run_on(hosts)

    def _core(self, what: CoreScheduling) -> int:
        """For the next vCPU. Raises HostError where there is no core scheduling, and is need of it."""
        from aiovmm.kvm import core_scheduling  # for who asks

        if not core_scheduling.is_needed():
            return 0
        cores = [vcpu.core for vcpu in self._halting.vcpus if vcpu.core] if what is CoreScheduling.VM else []
        return cores[0] if cores else ALONE

    async def add(self, index: int) -> None:
        """One more vCPU, which runs and waits for the guest to start it. Raises KvmError, with none there."""
        vcpu = await self._board.add_processor(index)
        try:
            self._run(vcpu)
        except BaseException:
            await self.remove(index)
            raise

    async def remove(self, index: int) -> None:
        """End the last vCPU's thread, from whatever it does."""
        vcpu = self._halting.vcpus[index]
        vcpu.stop()
        if vcpu.needs_end:
            await vcpu.join()
        vcpu.resume()  # from a pause that came meanwhile, or it would be in force when it is used again
        self._board.drop_processor(vcpu)

    async def pause(self) -> None:
        """Park all vCPUs, or, if that fails or is cancelled, none."""
        try:
            await asyncio.gather(*(vcpu.pause() for vcpu in self._halting.vcpus))
            self._board.stand_still()
        except BaseException:
            self.resume()
            raise

    def resume(self) -> None:
        """Let them go on. Raises HostError if one was to be started by that, and cannot."""
        self._board.go_on()
        for vcpu in self._halting.vcpus:
            vcpu.resume()
        due, self._due = self._due, []
        for vcpu in due if not self.halted else ():
            self._run(vcpu)

    @property
    def halted(self) -> bool:
        """Whether the guest runs no further instruction: it has ended, or asked for a reset."""
        return self._halting.halted

    def halt(self) -> None:
        """Ask all vCPU threads to end, without waiting for them, for good. Idempotent."""
        self._due.clear()
        self._halting.halt()

    async def stop(self) -> None:
        """End all vCPU threads; devices stay as they are. Idempotent."""
        self.halt()
        for vcpu in self._halting.vcpus:
            if vcpu.needs_end:
                await vcpu.join()

    def cut_off(self) -> None:
        """Stop at once, where nobody serves exits any more: the event loop was closed. It waits for the threads."""
        self.halt()
        for vcpu in self._halting.vcpus:
            if vcpu.needs_end:
                vcpu.on_ended()
