"""How a guest is stopped for good: all its vCPUs at once, and whom that is told.

Devices, the board and who judges the exits of vCPUs know this, and not the machine, which knows all of them: so a machine that
was taken apart is in no circle, and all of it is free as soon as nobody uses it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from aiovmm.kvm import Vcpu
from aiovmm.lifecycle import ExitReason
from aiovmm.machine.owner import MachineOwner

__all__ = ["Halting"]


class Halting:
    """Of one machine. `vcpus` are all of its, none before they are ready to run and after they are gone."""

    def __init__(self, owner: MachineOwner) -> None:
        self.vcpus: list[Vcpu] = []
        self.halted = False
        self._owner = owner
        self._starting = False
        self._early: tuple[ExitReason, str, BaseException | None] | None = None  # an end that came meanwhile

    def halt(self) -> None:
        """Ask all vCPU threads to end, without waiting for them, for good. Idempotent."""
        self.halted = True
        for vcpu in self.vcpus:
            vcpu.stop()

    def ended(self, reason: ExitReason, detail: str, error: BaseException | None = None) -> None:
        """The guest has ended: no instruction after the one that did it, on any vCPU."""
        self.halt()
        if self._starting:
            self._early = self._early or (reason, detail, error)
        else:
            self._owner.guest_ended(reason, detail, error)

    @contextmanager
    def starting(self) -> Iterator[None]:
        """An end that comes meanwhile is told afterwards: whoever starts it would take that for the end of the machine before."""
        self._starting = True
        try:
            yield
        finally:
            self._starting = False
            if self._early is not None:
                asyncio.get_running_loop().call_soon(self._owner.guest_ended, *self._early)
