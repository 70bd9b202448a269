"""All of a vCPU's state at once: read into plain data, and put back into a new vCPU, each in the order that KVM wants.

Reading: the MP state first, since KVM then settles what the local APIC has accepted; pending events last, for others change
them.
Setting: CPUID before all that depends on it, the APIC base (in the system registers) before the APIC, the APIC before the
model-specific registers (the deadline of its timer is one), general registers before the events, which they clear.

Time-stamp counters run meanwhile, and those of a guest's vCPUs are to agree: they are read last, of all vCPUs in a row, and set
likewise (tsc.py), each deadline after the counter that is compared with it.

Sources: Documentation/virt/kvm/api.rst; arch/x86/kvm/x86.c and lapic.c (kvm_apic_set_state, kvm_synchronize_tsc).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from aiovmm.errors import KvmError, SnapshotError
from aiovmm.kvm.ioctl import Calls, try_call
from aiovmm.kvm.vcpu import Vcpu
from aiovmm.kvm.x86_64 import cpuid, msrs
from aiovmm.kvm.x86_64.cpuid import CpuidEntry
from aiovmm.kvm.x86_64.state import Regs, from_plain
from aiovmm.kvm.x86_64.vcpustate import VcpuState, synic
from aiovmm.native import ffi, lib, owners
from aiovmm.runtime.dataclass import dataclass, field_types
from aiovmm.runtime.plain import Fields, State

__all__ = ["VcpuImage", "VcpuSizes", "put_counters", "read_counters", "read_vcpu"]

_CAP_NESTED_STATE, _CAP_SREGS2, _CAP_XSAVE2 = 157, 200, 208
_NESTED_HEADER, _NO_VMXON = 128, 0xFFFF_FFFF_FFFF_FFFF
_TSC, _TSC_DEADLINE = _COUNTED = 0x10, 0x6E0
_WORD = 0xFFFF_FFFF_FFFF_FFFF
_LAST_MP_STATE = 9
_ISR, _IRR = 0x100, 0x200  # in the local APIC's page: eight words of 32 bits each, 16 bytes apart
_HYPERV = (0x40000001, 0x31237648)  # its leaf for the kind of interface, "Hv#1" (boot.x86_64.hyperv)
_TSC_TOLERANCE = 250  # parts in a million that the counter of one host may run faster than another's, as KVM has it
_CPUID_WORDS = ("function", "index", "flags", "eax", "ebx", "ecx", "edx")


@dataclass(frozen=True)
class VcpuSizes:
    """What differs from host to host in how KVM gives a vCPU's state."""

    msrs: tuple[int, ...]
    xsave: int
    sregs: str
    nested: int

    @classmethod
    def of(cls, kvm_fd: int, vm_fd: int) -> VcpuSizes:
        """On this host, for vCPUs of this VM. Raises KvmError."""
        xsave = max(try_call(vm_fd, lib.KVM_CHECK_EXTENSION, _CAP_XSAVE2), 0)
        sregs = "sregs2" if try_call(vm_fd, lib.KVM_CHECK_EXTENSION, _CAP_SREGS2) > 0 else "sregs"
        nested = max(try_call(vm_fd, lib.KVM_CHECK_EXTENSION, _CAP_NESTED_STATE), 0)
        return cls(tuple(msrs.get_supported(kvm_fd)), max(xsave, ffi.sizeof("struct kvm_xsave")), sregs, nested)


def read_vcpu(vcpu: Vcpu, packed_cpuid: bytes, sizes: VcpuSizes) -> State:
    """All of it, with the CPUID that it was given. Raises KvmError, SnapshotError for a vCPU that runs guests of its own."""
    _refuse_hypervisor(vcpu, sizes)
    state = VcpuState(vcpu)
    mp_state = state.get_mp_state()
    regs = state.get_regs()
    saved: State = {
        "cpuid": [[getattr(e, word) for word in _CPUID_WORDS] for e in cpuid.unpack(packed_cpuid)],
        "tsc_khz": state.get_tsc_khz() or 0,
        "mp_state": mp_state,
        "regs": {name: getattr(regs, name) for name in field_types(regs)},
        sizes.sregs: _get(vcpu, sizes.sregs),
        "xsave": _get_xsave(vcpu, sizes),
        "xcrs": state.get_state("xcrs"),
        "debugregs": state.get_state("debugregs"),
        "lapic": state.get_state("lapic"),
        "msrs": [[index, value] for index, value in state.get_msrs(sizes.msrs).items()],
        "vcpu_events": state.get_state("vcpu_events"),
    }
    return saved


def read_counters(vcpus: Sequence[Vcpu], saved: Sequence[State]) -> None:
    """Have each of what `read_vcpu` gave say what its vCPU's time-stamp counter shows now, all at one moment. Raises KvmError."""
    from aiovmm.kvm.x86_64 import tsc  # of what is saved, or has more vCPUs than one

    shown = [msrs.get(vcpu.checked_fd(), [_TSC]) for vcpu in vcpus]
    if _TSC in shown[0] and (ahead := tsc.offsets(vcpus)) is not None:
        shown = [{_TSC: shown[0][_TSC] + offset - ahead[0] & _WORD} for offset in ahead]
    for now, state in zip(shown, saved, strict=True):
        state["msrs"] = [[index, now.get(index, value)] for index, value in state["msrs"]]


def put_counters(vcpus: Sequence[Vcpu], images: Sequence[VcpuImage], advance_ns: int) -> None:
    """The time-stamp counters of all vCPUs are `advance_ns` ahead of what they were; and what is compared with them. Raises
    KvmError, SnapshotError."""
    values = [image.put_counter(vcpu, advance_ns) for vcpu, image in zip(vcpus, images, strict=True)]
    if len(vcpus) > 1:
        from aiovmm.kvm.x86_64 import tsc

        tsc.agree(vcpus, values, images[0].tsc_khz)
    for vcpu, image in zip(vcpus, images, strict=True):
        image.put_deadline(vcpu)


def _refuse_hypervisor(vcpu: Vcpu, sizes: VcpuSizes) -> None:
    """KVM gives the state of a guest's own guests in a form of the processor's maker; a guest with none has next to nothing."""
    if not sizes.nested:
        return
    buffer = ffi.new("char[]", max(sizes.nested, _NESTED_HEADER))
    view = ffi.buffer(buffer)
    struct.pack_into(
        "<HHI", view, 0, 0, 0, len(view)
    )  # struct kvm_nested_state: flags, format, size; at 8 the VMXON region
    vcpu.ioctl(lib.KVM_GET_NESTED_STATE, buffer, "reading the nested state")
    _, kind, size = struct.unpack_from("<HHI", view)
    (vmxon,) = struct.unpack_from("<Q", view, 8)
    if size > _NESTED_HEADER or (kind == 0 and vmxon not in (0, _NO_VMXON)):
        raise SnapshotError(
            f"vCPU {vcpu.index} is a hypervisor's, and the state of guests in the guest is not saved: unload its KVM modules, or "
            "start it with cpus.nested=off"
        )


def _get(vcpu: Vcpu, name: str) -> bytes:
    arg = ffi.new(f"struct kvm_{name} *")
    vcpu.ioctl(getattr(lib, f"KVM_GET_{name.upper()}"), arg, f"reading {name}")
    return bytes(ffi.buffer(arg))


def _get_xsave(vcpu: Vcpu, sizes: VcpuSizes) -> bytes:
    buffer = ffi.new("char[]", sizes.xsave)
    large = sizes.xsave > ffi.sizeof("struct kvm_xsave")
    vcpu.ioctl(lib.KVM_GET_XSAVE2 if large else lib.KVM_GET_XSAVE, buffer, "reading xsave")
    return bytes(ffi.buffer(buffer))


@dataclass(frozen=True, eq=False)
class VcpuImage:
    """The state of one vCPU, checked and packed as KVM takes it, to be put into any number of vCPUs."""

    cpuid: tuple[CpuidEntry, ...]
    packed: bytes  # of these
    tsc_khz: int
    mp_state: int
    regs: Regs
    blobs: tuple[tuple[str, bytes], ...]  # in the order in which they are set
    msrs: tuple[tuple[int, int], ...]

    @classmethod
    def read(cls, fields: Fields, sizes: VcpuSizes) -> VcpuImage:
        """From what `read_vcpu` gave. Raises SnapshotError."""
        entries = tuple(_cpuid_entry(fields, row) for row in fields.list("cpuid", most=256))
        regs = fields.fields("regs")
        values = {name: regs.number(name) for name in field_types(Regs)}
        regs.end()
        sregs = "sregs2" if "sregs2" in fields else "sregs"
        if sregs == "sregs2" and sizes.sregs != "sregs2":
            raise SnapshotError(f"{fields.where}: this host's KVM is too old for it: Linux 5.14 or later is needed")
        xsave = fields.data("xsave", most=sizes.xsave)
        blobs = (
            (sregs, fields.data(sregs, ffi.sizeof(f"struct kvm_{sregs}"))),
            ("xsave", xsave + bytes(sizes.xsave - len(xsave))),
            *((name, fields.data(name, ffi.sizeof(f"struct kvm_{kind}"))) for name, kind in _BLOBS.items()),
        )
        image = cls(
            entries,
            cpuid.pack(entries),
            fields.number("tsc_khz", 0, 1 << 31),
            fields.number("mp_state", 0, _LAST_MP_STATE),
            Regs(**values),
            blobs,
            tuple(dict(_msr(fields, row) for row in fields.list("msrs", most=4096)).items()),  # each once
        )
        fields.end()
        return image

    @property
    def held(self) -> set[int]:
        """Vectors that its local APIC has accepted, and that the guest has not ended (Intel SDM 3A, 11.8.4)."""
        page = dict(self.blobs)["lapic"]
        words = (b"".join(page[at : at + 4] for at in range(start, start + 128, 16)) for start in (_ISR, _IRR))
        in_service, requested = (int.from_bytes(bits, "little") for bits in words)
        bits = in_service | requested
        return {vector for vector in range(bits.bit_length()) if bits >> vector & 1}

    def put(self, vcpu: Vcpu) -> None:
        """Into a new vCPU, all but what `put_counter` does. Raises SnapshotError for what this KVM does not take."""
        with _refusals_told(vcpu):
            self._set_frequency(vcpu, VcpuState(vcpu).get_tsc_khz())
            if not self._calls.make(vcpu.checked_fd()):
                self._put(vcpu)  # which finds out what is refused, and whether that matters

    @cached_property
    def _calls(self) -> Calls:
        """What `_put` does."""
        mp_state = ffi.new("struct kvm_mp_state *", {"mp_state": self.mp_state})
        regs = ffi.new("struct kvm_regs *")
        from_plain(self.regs, regs)
        calls: list[tuple[int, Any, int]] = [(lib.KVM_SET_CPUID2, owners.view(self.packed), 0)]
        if self._has_synic:
            calls.append((lib.KVM_ENABLE_CAP, synic(), 0))
        calls += [(lib.KVM_SET_MP_STATE, mp_state, 0), (lib.KVM_SET_REGS, regs, 0)]
        for name, data in self.blobs:
            calls.append((getattr(lib, f"KVM_SET_{name.upper()}"), owners.view(data), 0))
            if name == "lapic":
                values = [(index, value) for index, value in self.msrs if index not in _COUNTED]
                calls.append((lib.KVM_SET_MSRS, msrs.packed(values), len(values)))
        return Calls(calls)

    @property
    def _has_synic(self) -> bool:
        return any((e.function, e.eax) == _HYPERV for e in self.cpuid)

    @cached_property
    def _counted(self) -> dict[int, int]:
        return {index: value for index, value in self.msrs if index in _COUNTED}

    def put_counter(self, vcpu: Vcpu, advance_ns: int) -> int:
        """Its time-stamp counter is `advance_ns` ahead of what it was: what it shows now. Raises SnapshotError."""
        value = self._counted.get(_TSC, 0) + advance_ns * self.tsc_khz // 1_000_000 & _WORD
        self._put_counted(vcpu, _TSC, value)
        return value

    def put_deadline(self, vcpu: Vcpu) -> None:
        """When its local APIC's timer is due by that counter. Raises SnapshotError."""
        self._put_counted(vcpu, _TSC_DEADLINE, self._counted.get(_TSC_DEADLINE, 0))

    def _put_counted(self, vcpu: Vcpu, index: int, value: int) -> None:
        if index in self._counted:
            with _refusals_told(vcpu):
                _set_msrs(vcpu, [(index, value)])

    def _put(self, vcpu: Vcpu) -> None:
        state = VcpuState(vcpu)
        state.set_packed_cpuid(self.packed)
        if self._has_synic:
            state.enable_synic()
        state.set_mp_state(self.mp_state)
        state.set_regs(self.regs)
        for name, data in self.blobs:
            vcpu.ioctl(getattr(lib, f"KVM_SET_{name.upper()}"), owners.view(data), f"setting {name}")
            if name == "lapic":
                _set_msrs(vcpu, [(index, value) for index, value in self.msrs if index not in _COUNTED])

    def _set_frequency(self, vcpu: Vcpu, here: int | None) -> None:
        if not self.tsc_khz or here is None or abs(here - self.tsc_khz) * 1_000_000 <= here * _TSC_TOLERANCE:
            return
        if try_call(vcpu.checked_fd(), lib.KVM_SET_TSC_KHZ, self.tsc_khz) < 0:
            raise SnapshotError(
                f"its time-stamp counter runs at {self.tsc_khz} kHz, this host's at {here}, and this processor cannot scale it: "
                "restore it on a host of the same kind"
            )


@contextmanager
def _refusals_told(vcpu: Vcpu) -> Iterator[None]:
    try:
        yield
    except KvmError as exc:
        raise SnapshotError(f"vCPU {vcpu.index} does not take its state on this host: {exc}") from exc


_BLOBS = {
    "xcrs": "xcrs",
    "debugregs": "debugregs",
    "lapic": "lapic_state",
    "vcpu_events": "vcpu_events",
}


def _cpuid_entry(fields: Fields, row: Any) -> CpuidEntry:
    return CpuidEntry(*_words(fields, "cpuid", row, len(_CPUID_WORDS), 0xFFFF_FFFF))


def _msr(fields: Fields, row: Any) -> tuple[int, int]:
    index, value = _words(fields, "msrs", row, 2, 0xFFFF_FFFF_FFFF_FFFF)
    if index > 0xFFFF_FFFF:
        raise SnapshotError(f"{fields.where}.msrs: there is no register {index:#x}")
    return index, value


def _words(fields: Fields, name: str, row: Any, count: int, most: int) -> list[int]:
    return Fields({name: row}, fields.where).numbers(name, count, 0, most)


def _set_msrs(vcpu: Vcpu, values: Sequence[tuple[int, int]]) -> None:
    """All of them. One that KVM refuses to have set, and that has the value already, is as it should be."""
    fd, left = vcpu.checked_fd(), list(values)
    while left:
        done = msrs.try_set(fd, left)
        if done == len(left):
            return
        index, value = left[done]
        if msrs.get(fd, [index]).get(index) != value:
            hint = "restore it on a host with the same processor and kernel"
            raise SnapshotError(f"KVM refuses {value:#x} in model-specific register {index:#x} here: {hint}")
        left = left[done + 1 :]
