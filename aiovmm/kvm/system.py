"""/dev/kvm: opening it, what it can do, and making virtual machines."""

from __future__ import annotations

import errno
import os
from typing import Self

from aiovmm.errors import KvmError
from aiovmm.kvm.ioctl import call, error, try_call
from aiovmm.kvm.vmfd import VmFd
from aiovmm.kvm.x86_64 import cpuid, msrs, probe
from aiovmm.native import lib
from aiovmm.runtime.forks import keep_private, let_go

__all__ = ["REQUIRED_CAPABILITIES", "Kvm"]

_NO_MODULE = "load the kvm_intel or kvm_amd module (`modprobe`), and enable VT-x or AMD-V in the firmware"
_OPEN_HINTS = {
    errno.EACCES: "join the group that owns it (`usermod -aG kvm $USER`, then log in again), or run as root",
    errno.EPERM: "this process is confined: allow it the device (cgroup, container or seccomp policy)",
    errno.ENOENT: _NO_MODULE,
    errno.ENXIO: _NO_MODULE,
    errno.ENODEV: _NO_MODULE,
}

REQUIRED_CAPABILITIES = {
    "KVM_CAP_USER_MEMORY": 3,
    "KVM_CAP_SET_TSS_ADDR": 4,
    "KVM_CAP_EXT_CPUID": 7,
    "KVM_CAP_MP_STATE": 14,
    "KVM_CAP_IRQ_ROUTING": 25,
    "KVM_CAP_IRQFD": 32,
    "KVM_CAP_IOEVENTFD": 36,
    "KVM_CAP_SET_IDENTITY_MAP_ADDR": 37,
    "KVM_CAP_VCPU_EVENTS": 41,
    "KVM_CAP_SIGNAL_MSI": 77,
    "KVM_CAP_READONLY_MEM": 81,
    "KVM_CAP_ENABLE_CAP_VM": 98,
    "KVM_CAP_SPLIT_IRQCHIP": 121,
    "KVM_CAP_IMMEDIATE_EXIT": 136,
}
"""What aiovmm cannot do without; the youngest came with Linux 4.11."""

_MAX_VCPUS = 66  # KVM_CAP_MAX_VCPUS


class Kvm:
    """An open /dev/kvm. Usable as a context manager; VMs made from it outlive it."""

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path
        self._emulates: bool | None = None

    @classmethod
    def open(cls, path: str = "/dev/kvm") -> Kvm:
        """Open and check it. Raises KvmError that says what to do: about permission, a missing module, or a KVM too old."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as exc:
            raise error("opening KVM", exc.errno or 0, _OPEN_HINTS, path) from exc
        kvm = cls(keep_private(fd), path)
        try:
            kvm._check()
        except BaseException:
            kvm.close()
            raise
        return kvm

    def _check(self) -> None:
        version = call(self.fd, lib.KVM_GET_API_VERSION, 0, f"asking {self.path} for its version")
        if version != lib.KVM_API_VERSION:
            hint = f"it speaks version {version}, not {lib.KVM_API_VERSION}: the kernel is too old (or this is not KVM)"
            raise KvmError("checking KVM's version", errno.EPROTONOSUPPORT, hint, self.path)
        missing = self.missing_capabilities()
        if missing:
            hint = f"it lacks {', '.join(missing)}; Linux 4.11 or later is needed"
            raise KvmError("checking KVM's capabilities", errno.EOPNOTSUPP, hint, self.path)

    def missing_capabilities(self) -> list[str]:
        """Names of the required capabilities that this KVM lacks; empty on every kernel that open accepts."""
        return [name for name, number in REQUIRED_CAPABILITIES.items() if not self.capability(number)]

    def capability(self, number: int) -> int:
        """KVM_CHECK_EXTENSION: 0 if KVM lacks it; 1, or a number with its own meaning, if it has it."""
        return max(try_call(self.fd, lib.KVM_CHECK_EXTENSION, number), 0)

    @property
    def max_vcpus(self) -> int:
        """The most vCPUs one VM can have here."""
        return self.capability(_MAX_VCPUS) or 4  # 4: what the API documentation says of a KVM that does not know

    @property
    def run_size(self) -> int:
        """Bytes of a vCPU's shared page(s), struct kvm_run."""
        return call(self.fd, lib.KVM_GET_VCPU_MMAP_SIZE, 0, "asking KVM for the size of a vCPU")

    def supported_cpuid(self) -> list[cpuid.CpuidEntry]:
        """CPUID as this host can offer it. Raises KvmError."""
        return cpuid.get_supported(self.fd)

    def supported_msrs(self) -> list[int]:
        """Indices of the model-specific registers that make up a guest's state. Raises KvmError."""
        return msrs.get_supported(self.fd)

    def create_vm(self, max_vcpus: int = 1) -> VmFd:
        """A new VM with no memory, no interrupt controller and room for `max_vcpus` vCPUs. Raises KvmError."""
        if not 0 < max_vcpus <= self.max_vcpus:
            hint = f"this KVM allows 1 to {self.max_vcpus} vCPUs"
            raise KvmError(f"creating a VM with {max_vcpus} vCPUs", errno.EINVAL, hint)
        fd = call(self.fd, lib.KVM_CREATE_VM, 0, "creating a VM")
        return VmFd(fd, run_size=self.run_size, max_vcpus=max_vcpus)

    def emulates_guest_code(self) -> bool:
        """Whether this KVM runs guest kernel code in its instruction emulator, so that stock kernels cannot boot. Runs a tiny
        guest the first time (about a millisecond, at most `probe.DEADLINE`). Raises KvmError."""
        if self._emulates is None:
            self._emulates = probe.emulates_guest_code(self.create_vm())
        return self._emulates

    def close(self) -> None:
        """Close the device. Idempotent."""
        if self.fd >= 0:
            os.close(let_go(self.fd))
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
