"""Interrupts into the guest: the GSI routing table, irqfds and message-signalled interrupts.

A GSI is a message (address, data, on some machines who sends it) or a pin of an interrupt controller in the kernel. The first
ones are the machine's own to route; the rest are handed out by `allocate`.
"""

from __future__ import annotations

import errno
import os
import struct

from aiovmm.errors import KvmError
from aiovmm.kvm.ioctl import call, error
from aiovmm.native import ffi, lib, owners

__all__ = ["MSI_FROM_DEVICE", "GsiRouting", "IrqfdLine"]

_HEADER = struct.Struct("<II")  # struct kvm_irq_routing: nr, flags
_ENTRY = struct.Struct("<8I16x")  # struct kvm_irq_routing_entry: gsi, and a _Route

_IRQCHIP, _MSI = 1, 2  # KVM_IRQ_ROUTING_*
MSI_FROM_DEVICE = 1
"""Flag of a message (KVM_MSI_VALID_DEVID): it says who sends it."""
_Route = tuple[int, int, int, int, int, int, int]  # type, flags, pad; address low and high, data, device; or chip, pin


class GsiRouting:
    """The table GSI → interrupt of one VM; GSIs from `first` on are handed out, `limit` is how many there can be. Changes take
    effect together at `commit`.

    The table is kept as KVM takes it, so that a change of one vector, of which a driver with many queues makes hundreds, costs
    the same however long the table is.
    """

    def __init__(self, vm_fd: int, first: int, limit: int) -> None:
        self._fd = vm_fd
        self._routes: dict[int, _Route] = {}
        self._before: dict[int, _Route | None] = {}  # what has changed since the commit, as KVM has it
        self._places: dict[int, int] = {}  # of each route in the table
        self._table = bytearray(_at(first))
        self._free: list[int] = []
        self._next = first
        self._limit = limit

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

    def set_msi(self, gsi: int, address: int, data: int, device: int | None = None) -> None:
        """Route `gsi` to a message, from `device` where the interrupt controller asks who sends it. For KVM's local APICs with
        32-bit ids bits 63:40 of `address` carry bits 31:8 of the destination."""
        flags = 0 if device is None else MSI_FROM_DEVICE
        message = address & 0xFFFF_FFFF, address >> 32, data, device or 0
        self._change(gsi, (_MSI, flags, 0, *message))

    def set_pin(self, gsi: int, chip: int, pin: int) -> None:
        """Route `gsi` to a pin of an interrupt controller in the kernel."""
        self._change(gsi, (_IRQCHIP, 0, 0, chip, pin, 0, 0))

    def clear(self, gsi: int) -> None:
        """Take the route of `gsi` away: its irqfd then does nothing."""
        self._change(gsi, None)

    def commit(self) -> None:
        """Give KVM the table, if anything has changed since the last time. Raises KvmError, and then all is as it was: one
        message that KVM refuses, of one device, must not keep the others from theirs."""
        if all(self._routes.get(gsi) == route for gsi, route in self._before.items()):
            self._before.clear()
            return
        count = len(self._routes)
        _HEADER.pack_into(self._table, 0, count, 0)
        try:
            call(self._fd, lib.KVM_SET_GSI_ROUTING, owners.view(self._table), f"setting {count} interrupt routes")
        except KvmError:
            for gsi, route in list(self._before.items()):
                self._change(gsi, route)
            raise
        finally:
            self._before.clear()

    def _change(self, gsi: int, route: _Route | None) -> None:
        now = self._routes.get(gsi)
        if now == route:
            return
        self._before.setdefault(gsi, now)
        if route is None:
            self._drop(gsi)
            return
        self._routes[gsi] = route
        place = self._places.setdefault(gsi, len(self._places))
        if _at(place + 1) > len(self._table):
            self._table += bytes(len(self._table))
        _ENTRY.pack_into(self._table, _at(place), gsi, *route)

    def _drop(self, gsi: int) -> None:
        """Take a route out; the last of the table moves to its place."""
        del self._routes[gsi]
        place = self._places.pop(gsi)
        last = len(self._places)
        if place < last:
            moved = _ENTRY.unpack_from(self._table, _at(last))
            _ENTRY.pack_into(self._table, _at(place), *moved)
            self._places[moved[0]] = place


def _at(place: int) -> int:
    return _HEADER.size + place * _ENTRY.size


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
        hints = {errno.EINVAL: "irqfds need the interrupt controller first"}
        call(self._vm_fd, lib.KVM_IRQFD, arg, operation, hints)


def _eventfd(operation: str) -> int:
    try:
        return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    except OSError as exc:
        raise error(operation, exc.errno or 0) from exc
