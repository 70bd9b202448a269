"""Interrupts into the guest: the GSI routing table, irqfds and message-signalled interrupts.

With the split irqchip every GSI is a message (address, data) to the local APICs. GSIs below the I/O APIC's pin count belong to
its pins: KVM looks for level-triggered messages among exactly these, and exits at the end of such an interrupt. The rest
are handed out by `allocate`.
"""

from __future__ import annotations

import errno
import os
import struct

from aiovmm.errors import KvmError
from aiovmm.kvm.ioctl import call, error
from aiovmm.native import ffi, lib

__all__ = ["GsiRouting", "IrqfdLine"]

_HEADER = struct.Struct("<II")  # struct kvm_irq_routing: nr, flags
_ENTRY = struct.Struct(
    "<IIIIIII20x"
)  # struct kvm_irq_routing_entry with an MSI: gsi, type, flags, pad, low, high, data


class GsiRouting:
    """The table GSI → message of one VM. Changes take effect together at `commit`."""

    def __init__(self, vm_fd: int, pins: int, limit: int) -> None:
        self._fd = vm_fd
        self._routes: dict[int, tuple[int, int]] = {}
        self._committed: dict[int, tuple[int, int]] = {}  # what KVM has
        self._free: list[int] = []
        self._next = pins
        self._limit = limit
        self._dirty = False

    def allocate(self) -> int:
        """A GSI that nobody uses. Raises KvmError (ENOSPC) when KVM has no more."""
        if self._free:
            return self._free.pop()
        if self._next >= self._limit:
            raise KvmError("allocating an interrupt route", errno.ENOSPC, f"KVM has {self._limit} of them a VM")
        self._next += 1
        return self._next - 1

    def release(self, gsi: int) -> None:
        """Give a GSI back; its route goes with the next commit."""
        self.clear(gsi)
        self._free.append(gsi)

    def set_msi(self, gsi: int, address: int, data: int) -> None:
        """Route `gsi` to a message. With 32-bit APIC ids bits 63:40 of `address` carry bits 31:8 of the destination."""
        if self._routes.get(gsi) != (address, data):
            self._routes[gsi] = (address, data)
            self._dirty = True

    def clear(self, gsi: int) -> None:
        """Take the route of `gsi` away: its irqfd then does nothing."""
        self._dirty |= self._routes.pop(gsi, None) is not None

    def commit(self) -> None:
        """Give KVM the table, if anything has changed since the last time. Raises KvmError, and then all is as it was: one
        message that KVM refuses, of one device, must not keep the others from theirs."""
        if not self._dirty:
            return
        body = b"".join(
            _ENTRY.pack(gsi, lib.KVM_IRQ_ROUTING_MSI, 0, 0, address & 0xFFFF_FFFF, address >> 32, data)
            for gsi, (address, data) in sorted(self._routes.items())
        )
        buffer = ffi.new("char[]", _HEADER.pack(len(self._routes), 0) + body)
        try:
            call(self._fd, lib.KVM_SET_GSI_ROUTING, buffer, f"setting {len(self._routes)} interrupt routes")
            self._committed = dict(self._routes)
        except KvmError:
            self._routes = dict(self._committed)
            raise
        finally:
            self._dirty = False


class IrqfdLine:
    """An eventfd that KVM turns into an interrupt: an aiovmm.irq.IrqLine."""

    def __init__(self, vm_fd: int, gsi: int, fd: int | None = None) -> None:
        """Bind a new eventfd to `gsi`, or `fd`, which stays the caller's. Raises KvmError."""
        self.gsi = gsi
        self._vm_fd = vm_fd
        self._owned = fd is None
        self._fd = _eventfd("creating an irqfd") if fd is None else fd
        try:
            self._set(0, f"binding an irqfd to GSI {gsi}")
        except BaseException:
            self._drop()
            raise

    @property
    def fd(self) -> int:
        """The eventfd, for native code and other processes; -1 when closed. Stays this object's."""
        return self._fd

    def pulse(self) -> None:
        """Raise one interrupt. Nothing happens after close."""
        if self._fd >= 0:
            os.eventfd_write(self._fd, 1)

    def close(self) -> None:
        """Unbind, and close an eventfd of its own. Idempotent; before the VM's own close."""
        if self._fd < 0:
            return
        try:
            self._set(lib.KVM_IRQFD_FLAG_DEASSIGN, f"unbinding the irqfd of GSI {self.gsi}")
        finally:
            self._drop()

    def _drop(self) -> None:
        fd, self._fd = self._fd, -1
        if self._owned:
            os.close(fd)

    def _set(self, flags: int, operation: str) -> None:
        arg = ffi.new("struct kvm_irqfd *", {"fd": self._fd, "gsi": self.gsi, "flags": flags})
        hints = {errno.EINVAL: "irqfds need the interrupt controller (split_irqchip) first"}
        call(self._vm_fd, lib.KVM_IRQFD, arg, operation, hints)


def _eventfd(operation: str) -> int:
    try:
        return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    except OSError as exc:
        raise error(operation, exc.errno or 0) from exc
