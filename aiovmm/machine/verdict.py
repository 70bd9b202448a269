"""What it means for the guest that a vCPU ran for the last time, or that memory of it is gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aiovmm.errors import HostError
from aiovmm.kvm import FinalExit, Vcpu
from aiovmm.kvm.exits import EMULATION, InternalError, RunFailed, Shutdown
from aiovmm.lifecycle import ExitReason
from aiovmm.machine.blame import EMULATES, kvm_emulates, triple_fault
from aiovmm.machine.lost_memory import NO_BACKING, lost_memory
from aiovmm.machine.owner import MachineOwner
from aiovmm.memory import GuestMemory
from aiovmm.runtime.tasks import in_thread

__all__ = ["Verdict"]


class Verdict:
    """Of one machine. `halt` stops all vCPUs at once, for what there is to find out may take a while; `ended` does so too,
    and tells."""

    def __init__(
        self,
        memory: GuestMemory,
        ram: Sequence[tuple[int, int]],
        vcpus: Sequence[Vcpu],
        halt: Callable[[], None],
        ended: Callable[..., None],
        owner: MachineOwner,
    ) -> None:
        self._memory = memory
        self._ram = ram
        self._vcpus = vcpus
        self._halt = halt
        self._ended = ended
        self._owner = owner

    def vcpu_ended(self, index: int, final: FinalExit) -> None:
        """See ExitLoop."""
        if isinstance(final, Shutdown):
            self._ended(*triple_fault(self._memory, self._ram, self._vcpus, index))
        elif isinstance(final, InternalError) and final.suberror == EMULATION:
            self._halt()
            self._owner.create_task(self._emulation_failed(f"vCPU {index}: {final}"), name="why it failed")
        elif isinstance(final, RunFailed) and final.errno in NO_BACKING:
            self.memory_lost()
        else:
            self._ended(ExitReason.ERROR, f"vCPU {index}: {final}")

    def memory_lost(self) -> None:
        """As a vCPU or a thread of ours has found."""
        self._halt()
        self._owner.create_task(self._explain_lost_memory(), name="what became of its memory")

    async def _emulation_failed(self, detail: str) -> None:
        """An end that is KVM's fault where it emulates all of a guest, and else the guest's, at a device or in real mode."""
        emulates = False
        try:
            emulates = await in_thread(kvm_emulates)
        finally:  # told in any case
            self._ended(ExitReason.ERROR, detail + (EMULATES if emulates else ""))

    async def _explain_lost_memory(self) -> None:
        error: HostError | None = None
        try:
            error = await in_thread(lambda: lost_memory(self._memory))
        finally:  # told in any case
            self._ended(ExitReason.ERROR, str(error or "guest memory is lost"), error)
