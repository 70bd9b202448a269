"""What it means for the guest that a vCPU ran for the last time, or that memory of it is gone."""

from __future__ import annotations

import errno
from collections.abc import Callable

from aiovmm.errors import HostError, host_error
from aiovmm.kvm import FinalExit
from aiovmm.kvm.exits import RunFailed
from aiovmm.lifecycle import ExitReason
from aiovmm.machine.board import Finding
from aiovmm.machine.halting import Halting
from aiovmm.machine.owner import MachineOwner
from aiovmm.memory import GuestMemory
from aiovmm.runtime.tasks import in_thread

__all__ = ["NO_BACKING", "Verdict"]

NO_BACKING = (errno.EFAULT, 133)  # EHWPOISON
"""What KVM_RUN fails with when the guest itself is the first to touch memory that is not there any more."""


class Verdict:
    """Of one machine of the VM `name`. `judge` is its board's. All vCPUs are halted at once, for what there is to find out may
    take a while."""

    def __init__(
        self,
        name: str,
        memory: GuestMemory,
        judge: Callable[[int, FinalExit], Finding | Callable[[], Finding] | None],
        halting: Halting,
        owner: MachineOwner,
    ) -> None:
        self._name = name
        self._memory = memory
        self._judge = judge
        self._halting = halting
        self._owner = owner

    def vcpu_ended(self, index: int, final: FinalExit) -> None:
        """See ExitLoop."""
        if isinstance(final, RunFailed) and final.errno in NO_BACKING:
            self.memory_lost()
            return
        finding = self._judge(index, final)
        if callable(finding):
            self._halting.halt()
            self._owner.create_task(self._find_out(finding, f"vCPU {index}: {final}"), name="why it failed")
        else:
            self._halting.ended(*(finding or (ExitReason.ERROR, f"vCPU {index}: {final}")))

    def exits_lost(self, error: Exception) -> None:
        """See ExitLoop."""
        error = host_error(f"serving the exits of VM {self._name!r}", error) or error
        self._halting.ended(ExitReason.ERROR, f"exits of its were lost: {error or type(error).__name__}", error)

    def memory_lost(self) -> None:
        """As a vCPU or a thread of ours has found."""
        self._halting.halt()
        self._owner.create_task(self._explain_lost_memory(), name="what became of its memory")

    async def _find_out(self, find: Callable[[], Finding], otherwise: str) -> None:
        finding = ExitReason.ERROR, otherwise
        try:
            finding = await in_thread(f"{self._name}: look why", find)
        finally:  # told in any case
            self._halting.ended(*finding)

    async def _explain_lost_memory(self) -> None:
        error: HostError | None = None
        try:
            error = await in_thread(f"{self._name}: lost memory", self._lost_memory)
        finally:  # told in any case
            self._halting.ended(ExitReason.ERROR, str(error or "guest memory is lost"), error)

    def _lost_memory(self) -> HostError:
        from aiovmm.machine.lost_memory import lost_memory  # most guests lose none

        return lost_memory(self._memory)
