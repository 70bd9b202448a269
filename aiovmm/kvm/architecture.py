"""What each architecture's room has to say about KVM, and the room of this host. Nobody else here asks for a room."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from aiovmm import architecture

if TYPE_CHECKING:
    from aiovmm.kvm.vmfd import VmFd

__all__ = ["KvmArchitecture", "of_host"]


class KvmArchitecture(Protocol):
    """A room, as a module."""

    REQUIRED_CAPABILITIES: Mapping[str, int]
    """What guests cannot do without, by name."""
    OLDEST_LINUX: str
    """The first kernel that has all of them."""
    NO_DEVICE: str
    """What to do where there is no /dev/kvm."""

    def vm_type(self, kvm_fd: int, /) -> int:
        """The argument of KVM_CREATE_VM."""

    def shortcomings(self, vm: VmFd, /) -> list[tuple[str, str]]:
        """What this host's KVM has not that every guest needs, as found with an empty VM, each with what to do about it."""

    def emulates_guest_code(self, vm: VmFd, /) -> bool:
        """Whether guest kernel code is emulated, so that stock kernels do not run; tried in `vm`, which is closed after. Blocks
        for some milliseconds. Raises KvmError."""


def of_host() -> KvmArchitecture:
    """The room of this host. Raises HostError where there is none."""
    match architecture.host():
        case architecture.X86_64:
            from aiovmm.kvm import x86_64

            return x86_64
        case _:  # there are two
            from aiovmm.kvm import aarch64

            return aarch64
