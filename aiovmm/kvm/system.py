"""/dev/kvm: opening it, what it can do, and making virtual machines."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Collection
from functools import cached_property
from typing import ClassVar, Self

from aiovmm.errors import KvmError
from aiovmm.kvm import architecture
from aiovmm.kvm.ioctl import call, error, try_call
from aiovmm.kvm.vmfd import VmFd
from aiovmm.native import lib
from aiovmm.runtime.forks import keep_private, let_go

__all__ = ["Kvm"]

_OPEN_HINTS = {
    errno.EACCES: "join the group that owns it (`usermod -aG kvm $USER`, then log in again), or run as root",
    errno.EPERM: "this process is confined: allow it the device (cgroup, container or seccomp policy)",
}
_NO_DEVICE = (errno.ENOENT, errno.ENXIO, errno.ENODEV)

_MAX_VCPUS = 66  # KVM_CAP_MAX_VCPUS


class Kvm:
    """An open /dev/kvm. Usable as a context manager; VMs made from it outlive it."""

    _held: ClassVar[Kvm | None] = None  # the one of `hold`
    _seen: ClassVar[set[tuple[int, ...]]] = set()  # identities of those that `hold` has checked
    _lock: ClassVar[threading.RLock] = threading.RLock()  # `open` closes what it has refused

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path
        self._holders = 0
        self._pid = os.getpid()
        self._emulates: bool | None = None

    @classmethod
    def open(cls, path: str = "/dev/kvm", *, checked: Collection[tuple[int, ...]] = ()) -> Kvm:
        """Open it, and check it unless its identity is one of those that were `checked` before. Raises KvmError that says what to
        do: about permission, a missing module, or a KVM too old."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as exc:
            hints = _OPEN_HINTS | dict.fromkeys(_NO_DEVICE, architecture.of_host().NO_DEVICE)
            raise error("opening KVM", exc.errno or 0, hints, path) from exc
        kvm = cls(keep_private(fd), path)
        try:
            if kvm.identity not in checked:
                kvm._check()
        except BaseException:
            kvm.close()
            raise
        return kvm

    @classmethod
    def hold(cls) -> Kvm:
        """The process's one: opened for the first who asks, and closed when the last has called `close`. Raises KvmError."""
        with cls._lock:
            held = cls._held
            if held is None or held._pid != os.getpid():  # a child has /dev/null in its place
                held = cls._held = cls.open(checked=cls._seen)
                cls._seen.add(held.identity)
            held._holders += 1
            return held

    def _check(self) -> None:
        version = call(self.fd, lib.KVM_GET_API_VERSION, 0, f"asking {self.path} for its version")
        if version != lib.KVM_API_VERSION:
            hint = f"it speaks version {version}, not {lib.KVM_API_VERSION}: the kernel is too old (or this is not KVM)"
            raise KvmError("checking KVM's version", errno.EPROTONOSUPPORT, hint, self.path)
        missing = self.missing_capabilities()
        if missing:
            hint = f"it lacks {', '.join(missing)}; {architecture.of_host().OLDEST_LINUX} or later is needed"
            raise KvmError("checking KVM's capabilities", errno.EOPNOTSUPP, hint, self.path)

    def missing_capabilities(self) -> list[str]:
        """Names of the required capabilities that this KVM lacks; empty on every kernel that open accepts."""
        required = architecture.of_host().REQUIRED_CAPABILITIES
        return [name for name, number in required.items() if not self.capability(number)]

    def capability(self, number: int) -> int:
        """KVM_CHECK_EXTENSION: 0 if KVM lacks it; 1, or a number with its own meaning, if it has it."""
        return max(try_call(self.fd, lib.KVM_CHECK_EXTENSION, number), 0)

    @cached_property
    def max_vcpus(self) -> int:
        """The most vCPUs one VM can have here."""
        return self.capability(_MAX_VCPUS) or 4  # 4: what the API documentation says of a KVM that does not know

    @cached_property
    def run_size(self) -> int:
        """Bytes of a vCPU's shared page(s), struct kvm_run."""
        return call(self.fd, lib.KVM_GET_VCPU_MMAP_SIZE, 0, "asking KVM for the size of a vCPU")

    @property
    def identity(self) -> tuple[int, ...]:
        """Of the device: another one, where there is another KVM now (a module that was loaded anew, with other parameters)."""
        status = os.fstat(self.fd)
        return status.st_dev, status.st_ino, status.st_rdev, status.st_ctime_ns

    def create_vm(self, max_vcpus: int = 1) -> VmFd:
        """A new VM with no memory, no interrupt controller and room for `max_vcpus` vCPUs. Raises KvmError."""
        if not 0 < max_vcpus <= self.max_vcpus:
            hint = f"this KVM allows 1 to {self.max_vcpus} vCPUs"
            raise KvmError(f"creating a VM with {max_vcpus} vCPUs", errno.EINVAL, hint)
        run_size = self.run_size  # which may fail, and there is no VM yet that would be left
        fd = call(self.fd, lib.KVM_CREATE_VM, architecture.of_host().vm_type(self.fd), "creating a VM")
        return VmFd(fd, run_size=run_size, max_vcpus=max_vcpus)

    def shortcomings(self) -> list[tuple[str, str]]:
        """What this KVM has not that every guest needs, each with what to do about it. Raises KvmError."""
        vm = self.create_vm()
        try:
            return architecture.of_host().shortcomings(vm)
        finally:
            vm.close()

    def emulates_guest_code(self) -> bool:
        """Whether this KVM runs guest kernel code in its instruction emulator, so that stock kernels cannot boot. Runs a tiny
        guest the first time (about a millisecond). Raises KvmError."""
        if self._emulates is None:
            self._emulates = architecture.of_host().emulates_guest_code(self.create_vm())
        return self._emulates

    def close(self) -> None:
        """Close the device, once for each `hold`; else idempotent."""
        with self._lock:
            self._holders -= 1
            if self.fd < 0 or self._holders > 0:
                return
            if Kvm._held is self:
                Kvm._held = None
            os.close(let_go(self.fd))
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
