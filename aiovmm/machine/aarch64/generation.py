"""Which machine this is: 16 random bytes in memory that the guest reads, and an interrupt when they are others.

They are so for a guest that goes on from a saved one, in a machine of its own: what is made from random numbers that it has
drawn before, another may have, too. KVM maps the page when the guest first looks at it, and cleans the host's caches of it then,
so that a guest which reads past them, as Linux does, sees what is there.
"""

from __future__ import annotations

import mmap
import os

from aiovmm.boot.aarch64 import layout
from aiovmm.errors import HostError
from aiovmm.kvm.aarch64.pins import SpiLine
from aiovmm.kvm.vmfd import VmFd
from aiovmm.native.mapping import Mapping

__all__ = ["VmGeneration"]

_SIZE = 16


class VmGeneration:
    """That of one machine, which there has not been before. Raises HostError, KvmError."""

    def __init__(self, vm: VmFd) -> None:
        try:
            memory = Mapping(-1, mmap.PAGESIZE)
        except OSError as exc:
            raise HostError("mapping the VM generation", exc.errno or 0) from exc
        memory[:_SIZE] = os.urandom(_SIZE)
        self._slot = vm.host_memory(layout.GENERATION, mmap.PAGESIZE, memory)
        self._line = SpiLine(vm, layout.GENERATION_SPI)

    def tell(self) -> None:
        """Have the guest look again. Raises KvmError."""
        self._line.set_level(True)
        self._line.set_level(False)

    def close(self) -> None:
        """Before the VM goes, whose guest does not run any more. Idempotent."""
        self._slot.drop()
