"""One virtual machine as KVM knows it: memory slots, interrupt controller, doorbells, vCPUs.

Closing goes from the inside out: vCPUs stopped and joined, exit loop closed (its reader leaves the loop), doorbells and irqfds
closed by their owners, then `VmFd.close`, then the guest memory.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from functools import partial

from aiovmm.bus import Range, Space
from aiovmm.errors import KvmError, StateError
from aiovmm.kvm.ioctl import call, error
from aiovmm.kvm.ioeventfd import Ioeventfd
from aiovmm.kvm.ranges import RangeCounts, RangeTable
from aiovmm.kvm.routing import MSI_FROM_DEVICE, GsiRouting, IrqfdLine
from aiovmm.kvm.vcpu import Vcpu
from aiovmm.memory import GuestMemory, MemoryRegion
from aiovmm.native import ffi, lib, owners
from aiovmm.native.mapping import Mapping
from aiovmm.runtime.forks import keep_private, let_go
from aiovmm.runtime.patience import look_ns

__all__ = ["HostMemorySlot", "VmFd"]

_PACE_BURST = 10_000_000  # nanoseconds: what a driver does in a row is not drawn out


class VmFd:
    """A VM's file descriptor and everything registered with it. Made by Kvm.create_vm."""

    def __init__(self, fd: int, *, run_size: int, max_vcpus: int) -> None:
        self.fd = keep_private(fd)
        self.name = ""
        """Whose it is, for the names of its threads."""
        self.vcpus: dict[int, Vcpu] = {}
        self.max_vcpus = max_vcpus
        self.routing: GsiRouting | None = None
        """Once there is an interrupt controller: whoever makes it sets this."""
        self._run_size = run_size
        self._slots: dict[MemoryRegion, tuple[int, memoryview]] = {}  # a view keeps the mapping while KVM has it
        self._free_slots: list[int] = []
        self._next_slot = 0
        # By id, the descriptors of vCPUs that nobody has but KVM, which takes them back with the VM only.
        self._opened: dict[int, int] = {}
        try:
            self.exit_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError as exc:
            os.close(let_go(fd))
            raise error("creating the exit eventfd of a VM", exc.errno or 0) from exc
        self.native = lib.avmm_vm_new(self.exit_fd, max_vcpus, look_ns())
        if self.native == ffi.NULL:
            os.close(self.exit_fd)
            os.close(let_go(fd))
            raise error("allocating a VM", errno.ENOMEM)
        self._ranges = RangeTable(self.native)
        self._door = ffi.new("int *", fd)  # the VM for who sends it messages

    # -- memory --

    def set_memory(self, memory: GuestMemory) -> None:
        """Make the VM's slots those of `memory`'s regions; call again after regions came or went. An ExitLoop is told when one
        is lost. Raises KvmError."""
        for region in [r for r in self._slots if r not in memory.regions]:
            slot, _ = self._slots[region]
            self._set_slot(slot, region, 0)
            region.mapping.tell_loss(-1)
            del self._slots[region]
            self._free_slots.append(slot)
        for region in memory.regions:
            if region not in self._slots:
                slot = self._take_slot()
                self._set_slot(slot, region, region.size)
                self._slots[region] = slot, memoryview(region.mapping)
                region.mapping.tell_loss(self.exit_fd, lib.avmm_vm_lost(self.native))

    def host_memory(self, gpa: int, size: int, mapping: Mapping) -> HostMemorySlot:
        """Let the guest see the first `size` bytes of `mapping` (a device's registers) at `gpa`. Raises KvmError."""
        slot = self._take_slot()
        try:
            self._map_slot(slot, gpa, size, mapping.host)
        except KvmError:
            self._free_slots.append(slot)
            raise
        return HostMemorySlot(self, slot, gpa, mapping)

    def _take_slot(self) -> int:
        if self._free_slots:
            return self._free_slots.pop()
        self._next_slot += 1
        return self._next_slot - 1

    def _set_slot(self, slot: int, region: MemoryRegion, size: int) -> None:
        self._map_slot(slot, region.gpa, size, region.host, readonly=region.readonly)

    def _map_slot(self, slot: int, gpa: int, size: int, host: int, *, readonly: bool = False) -> None:
        fields = {
            "slot": slot,
            "flags": lib.KVM_MEM_READONLY if readonly else 0,
            "guest_phys_addr": gpa,
            "memory_size": size,
            "userspace_addr": host,
        }
        hints = {
            errno.EEXIST: "it overlaps another slot",
            errno.EINVAL: "too many slots, or read-only ones not supported",
        }
        arg = ffi.new("struct kvm_userspace_memory_region *", fields)
        call(self.fd, lib.KVM_SET_USER_MEMORY_REGION, arg, f"mapping guest memory at {gpa:#x}", hints)

    # -- interrupts --

    def irqfd(self, gsi: int, fd: int | None = None) -> IrqfdLine:
        """An eventfd bound to `gsi`, a new one or `fd` (which stays the caller's); the caller closes it. Raises KvmError."""
        return IrqfdLine(self.fd, gsi, fd)

    def signal_msi(self, address: int, data: int, device: int | None = None) -> bool:
        """Send a message now, from `device` where the interrupt controller asks who sends it. True if it was delivered, False if
        the guest had it blocked. Raises KvmError."""
        message = ffi.new("struct kvm_msi *", _message(address, data, device))
        return call(self.fd, lib.KVM_SIGNAL_MSI, message, "sending an MSI") > 0

    def message(self, address: int, data: int, device: int | None = None) -> Callable[[], None]:
        """What sends this message, as `signal_msi` would, whenever it is called, as fast as an irqfd is signalled: one native
        call. What nobody takes is lost, as on hardware, and so is what comes after `close`."""
        sent = ffi.new("struct avmm_message *", {"msi": _message(address, data, device)})
        owners.link(sent, vm=self._door)
        return partial(lib.avmm_message_send, sent)

    # -- accesses --

    def ioeventfd(self, space: Space, address: int, size: int, fd: int, datamatch: int | None = None) -> Ioeventfd:
        """Signal `fd` when the guest writes there; the caller closes the result. Raises KvmError."""
        return Ioeventfd(self.fd, space, address, size, fd, datamatch)

    def publish(self, ranges: Sequence[Range]) -> None:
        """Replace the ranges that vCPUs look exits up in. Takes effect at once, while they run."""
        self._ranges.publish(ranges)

    def range_counts(self, rng: Range) -> RangeCounts:
        """How accesses to a published range were answered so far. Raises KeyError."""
        return self._ranges.counts(rng)

    def limit_exits(self, rate: int | None) -> None:
        """From now on at most `rate` exits a second to this process, of all vCPUs together, and a hundredth of that at once;
        None: as many as the guest makes. A vCPU that would make more stands still until it may."""
        interval = 1_000_000_000 // rate if rate else 0
        lib.avmm_vm_pace(self.native, lib.AVMM_PACE_EXITS, interval, max(_PACE_BURST, interval))

    def limit_harm(self, rate: int) -> None:
        """Likewise of what holds up the whole host (VcpuCounters.bus_locks and notifies), with a tenth of it at once."""
        lib.avmm_vm_pace(self.native, lib.AVMM_PACE_HARM, 1_000_000_000 // rate, 100_000_000)

    # -- vCPUs --

    def create_vcpu(self, index: int, *, id_: int | None = None, ring_size: int = 512) -> Vcpu:
        """vCPU `index`, which is also what the guest knows it by (on x86 its APIC id), unless `id_` says otherwise. `ring_size`
        (a power of two) bounds the exits it may be ahead of the loop."""
        if index >= self.max_vcpus:
            raise KvmError(f"creating vCPU {index}", errno.EINVAL, f"this VM was made for {self.max_vcpus}")
        self.open_vcpu(index, id_)
        return self.adopt_vcpu(index, id_, ring_size=ring_size)

    def open_vcpu(self, index: int, id_: int | None = None) -> None:
        """The first part of `create_vcpu`, which may take long while others run; none after which `adopt_vcpu` has failed. Raises
        KvmError."""
        id_ = index if id_ is None else id_
        if id_ not in self._opened:
            self._opened[id_] = call(self.fd, lib.KVM_CREATE_VCPU, id_, f"creating vCPU {index}")

    def adopt_vcpu(self, index: int, id_: int | None = None, *, ring_size: int = 512) -> Vcpu:
        """The second part, in the event loop's thread if that serves the VM. Raises KvmError, MemoryError; then KVM has it all
        the same, and another `create_vcpu` begins here."""
        id_ = index if id_ is None else id_
        vcpu = Vcpu(self, index, self._opened[id_], self._run_size, ring_size)
        del self._opened[id_]
        self.vcpus[index] = vcpu
        return vcpu

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.fd < 0

    def close(self) -> None:
        """Close vCPUs and VM. Idempotent. Raises StateError while a vCPU thread runs."""
        if self.closed:
            return
        running = [v.index for v in self.vcpus.values() if v.running]
        if running:
            raise StateError(f"vCPUs {running} are still running; stop and join them before closing the VM")
        for vcpu in self.vcpus.values():
            vcpu.close()
        self.vcpus.clear()
        while self._opened:
            os.close(self._opened.popitem()[1])
        for region in self._slots:
            region.mapping.tell_loss(-1)
        self._slots.clear()
        self._ranges.close()
        self._door[0] = -1
        lib.avmm_vm_free(self.native)
        os.close(self.exit_fd)
        os.close(let_go(self.fd))
        self.native, self.exit_fd, self.fd = None, -1, -1  # None: native code refuses it, where NULL would be followed

    def enable(self, cap: int, argument: int, operation: str, hints: dict[int, str] | None = None) -> None:
        """Turn a capability of the VM's on. Raises KvmError."""
        arg = ffi.new("struct kvm_enable_cap *", {"cap": cap, "args": [argument]})
        call(self.fd, lib.KVM_ENABLE_CAP, arg, operation, hints)


def _message(address: int, data: int, device: int | None) -> dict[str, int]:
    """The fields of `struct kvm_msi`."""
    fields = {"address_lo": address & 0xFFFF_FFFF, "address_hi": address >> 32, "data": data}
    return fields if device is None else fields | {"flags": MSI_FROM_DEVICE, "devid": device}


class HostMemorySlot:
    """Memory that the guest sees until `close`, and that is there as long. Made by VmFd.host_memory."""

    def __init__(self, vm: VmFd, slot: int, gpa: int, mapping: Mapping) -> None:
        self.gpa = gpa
        self._vm = vm
        self._slot = slot
        self._host = mapping.host
        self._view: memoryview | None = memoryview(mapping)

    def close(self) -> None:
        """Take it out of the guest's view. Idempotent."""
        if self._view is not None and not self._vm.closed:
            self._vm._map_slot(self._slot, self.gpa, 0, self._host)
            self._vm._free_slots.append(self._slot)
        self.drop()

    def drop(self) -> None:
        """Give the memory back; KVM forgets it with the VM, whose guest does not run any more. Idempotent."""
        self._view = None
