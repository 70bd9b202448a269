"""The architectural state of a vCPU through KVM's ioctls.

Only while the guest does not run: KVM holds a vCPU's lock for as long as it does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from aiovmm.kvm.ioctl import try_call
from aiovmm.kvm.vcpu import Vcpu
from aiovmm.kvm.x86_64 import cpuid, msrs
from aiovmm.kvm.x86_64.paging import Paging
from aiovmm.kvm.x86_64.state import BLOBS, Regs, Sregs, from_plain, to_plain
from aiovmm.native import ffi, lib, owners

__all__ = ["VcpuState", "synic"]

_CAP_HYPERV_SYNIC2 = 148
_LVT0, _LVT1 = 0x350, 0x360  # offsets of LVT LINT0 and LINT1 in the APIC page, Intel SDM 3A 11.4.1
_DELIVERY_MODE, _MASKED = 0x700, 0x1_0000
_NMI, _EXTINT = 0x400, 0x700


def synic() -> Any:
    """The `struct kvm_enable_cap *` of Hyper-V's interrupt controller."""
    return ffi.new("struct kvm_enable_cap *", {"cap": _CAP_HYPERV_SYNIC2})


class VcpuState:
    """Getters and setters of a vCPU's state. All raise KvmError, and StateError while the guest runs."""

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu

    def set_cpuid(self, entries: Iterable[cpuid.CpuidEntry]) -> None:
        """What CPUID answers on this vCPU. Before its first run."""
        self.set_packed_cpuid(cpuid.pack(entries))

    def set_packed_cpuid(self, packed: bytes) -> None:
        """The same of entries that are packed already (cpuid.pack)."""
        self._vcpu.ioctl(lib.KVM_SET_CPUID2, owners.view(packed), "setting the CPUID")

    def enable_synic(self) -> None:
        """Have it take messages and timers as Hyper-V sends them. Before its registers are set."""
        self._vcpu.ioctl(lib.KVM_ENABLE_CAP, synic(), "enabling Hyper-V's interrupt controller")

    def get_tsc_khz(self) -> int | None:
        """The frequency of its TSC in kHz; None where KVM does not know it."""
        khz = try_call(self._vcpu.checked_fd(), lib.KVM_GET_TSC_KHZ, 0)
        return khz if khz > 0 else None

    def get_regs(self) -> Regs:
        """General registers."""
        regs: Regs = to_plain(Regs, self._get("REGS", "struct kvm_regs"))
        return regs

    def set_regs(self, regs: Regs) -> None:
        """General registers."""
        self._set_plain("REGS", "struct kvm_regs", regs)

    def get_sregs(self) -> Sregs:
        """Segment, control and table registers."""
        sregs: Sregs = to_plain(Sregs, self._get("SREGS", "struct kvm_sregs"))
        return sregs

    def set_sregs(self, sregs: Sregs) -> None:
        """Segment, control and table registers."""
        self._set_plain("SREGS", "struct kvm_sregs", sregs)

    def change_sregs(self, **values: Any) -> None:
        """Some of them, by their names in `struct kvm_sregs`: numbers, or data with the fields of the structures."""
        sregs = self._get("SREGS", "struct kvm_sregs")
        for name, value in values.items():
            if isinstance(value, int):
                setattr(sregs, name, value)
            else:
                from_plain(value, getattr(sregs, name))
        self._vcpu.ioctl(lib.KVM_SET_SREGS, sregs, "setting sregs")

    def get_mp_state(self) -> int:
        """MpState."""
        return int(self._get("MP_STATE", "struct kvm_mp_state").mp_state)

    def set_mp_state(self, state: int) -> None:
        """MpState."""
        arg = ffi.new("struct kvm_mp_state *", {"mp_state": state})
        self._vcpu.ioctl(lib.KVM_SET_MP_STATE, arg, "setting the MP state")

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """Values of those of the model-specific registers that can be read: KVM stops at the first that cannot."""
        return msrs.get(self._vcpu.checked_fd(), list(indices))

    def set_msrs(self, values: Mapping[int, int]) -> None:
        """Set model-specific registers. Raises KvmError that names the first that KVM refuses."""
        msrs.set_(self._vcpu.checked_fd(), dict(values))

    def get_state(self, name: str) -> bytes:
        """State `name` (a key of kvm.state.BLOBS) as the bytes of KVM's structure."""
        return bytes(ffi.buffer(self._get(name.upper(), BLOBS[name])))

    def set_state(self, name: str, data: bytes) -> None:
        """Put back what get_state gave."""
        arg = ffi.new(f"{BLOBS[name]} *")
        ffi.buffer(arg)[:] = data
        self._vcpu.ioctl(getattr(lib, f"KVM_SET_{name.upper()}"), arg, f"setting {name}")

    def reset_fpu(self, fcw: int = 0x37F, mxcsr: int = 0x1F80) -> None:
        """x87 and SSE as an operating system's loader leaves them: all exceptions masked (Intel SDM 1, 8.1.5 and 11.6.4)."""
        arg = ffi.new("struct kvm_fpu *", {"fcw": fcw, "mxcsr": mxcsr})
        self._vcpu.ioctl(lib.KVM_SET_FPU, arg, "setting the FPU")

    def wire_local_interrupts(self) -> None:
        """LINT0 takes external interrupts and LINT1 NMIs, as firmware leaves the BSP (Intel MP specification 1.4, 3.8.2.1)."""
        lapic = bytearray(self.get_state("lapic"))
        for offset, mode in ((_LVT0, _EXTINT), (_LVT1, _NMI)):
            value = int.from_bytes(lapic[offset : offset + 4], "little") & ~(_DELIVERY_MODE | _MASKED) | mode
            lapic[offset : offset + 4] = value.to_bytes(4, "little")
        self.set_state("lapic", bytes(lapic))

    @property
    def paging(self) -> Paging:
        """The page tables that the guest is on."""
        s = self.get_sregs()
        return Paging(s.cr0, s.cr3, s.cr4, s.efer)

    @property
    def seen_paging(self) -> Paging:
        """The page tables that it was last seen on; also while it runs. All zero before the first time."""
        p = lib.avmm_vcpu_paging(self._vcpu.open_native())
        return Paging(p.cr0, p.cr3, p.cr4, p.efer)

    def _get(self, name: str, struct: str) -> Any:
        arg = ffi.new(f"{struct} *")
        self._vcpu.ioctl(getattr(lib, f"KVM_GET_{name}"), arg, f"reading {name.lower()}")
        return arg  # the pointer itself: it owns the structure

    def _set_plain(self, name: str, struct: str, plain: Any) -> None:
        arg = ffi.new(f"{struct} *")
        from_plain(plain, arg)
        self._vcpu.ioctl(getattr(lib, f"KVM_SET_{name}"), arg, f"setting {name.lower()}")
