"""All of a vCPU's state at once: read into plain data, and put back into a vCPU that was just reset.

KVM lists the registers that a vCPU has, and they are kept by their numbers, whatever they are. Three kinds are put back in their
own ways: the vector lengths before a vCPU is ready (features.reset), what nobody can set, which has to be the same here, and
the counters, which all vCPUs share and which go on while nothing runs.

Sources: Documentation/virt/kvm/api.rst (4.68 to 4.70); arch/arm64/kvm/{guest,arch_timer}.c.
"""

from __future__ import annotations

from typing import Any

from aiovmm.errors import KvmError, SnapshotError
from aiovmm.kvm.aarch64.registers import COUNTERS, VECTOR_LENGTHS, Registers, size_of
from aiovmm.kvm.ioctl import try_call
from aiovmm.kvm.vcpu import Vcpu
from aiovmm.native import ffi, lib, owners
from aiovmm.runtime.dataclass import dataclass
from aiovmm.runtime.plain import Fields, State

__all__ = ["VcpuImage", "read_vcpu"]

_LAST_MP_STATE = 10  # KVM_MP_STATE_SUSPENDED
_MOST_REGISTERS = 8192
_LARGEST = 256  # bytes: an SVE vector of 2,048 bits
_ARM64, _ARCHITECTURE = 0x60 << 56, 0xFF << 56  # KVM_REG_ARM64, KVM_REG_ARCH_MASK
_ELSEWHERE = "restore it on a host with the same processor and kernel, or newer ones of their kind"


def read_vcpu(vcpu: Vcpu) -> State:
    """All of it. Raises KvmError."""
    registers = Registers(vcpu)
    mp_state = ffi.new("struct kvm_mp_state *")
    vcpu.ioctl(lib.KVM_GET_MP_STATE, mp_state, "reading the MP state")
    return {
        "mp_state": int(mp_state.mp_state),
        "registers": [[number, registers.read(number)] for number in registers.listed()],
        "events": _events(vcpu),
    }


def _events(vcpu: Vcpu) -> bytes | None:
    """Exceptions that are pending; None of a KVM before Linux 4.19, which cannot tell."""
    events = ffi.new("struct kvm_vcpu_events *")
    known = try_call(vcpu.checked_fd(), lib.KVM_GET_VCPU_EVENTS, events) >= 0
    return bytes(ffi.buffer(events)) if known else None


@dataclass(frozen=True, eq=False)
class VcpuImage:
    """The state of one vCPU, checked, to be put into any number of vCPUs. `counters` are by their numbers, what they showed."""

    mp_state: int
    vector_lengths: bytes | None
    counters: dict[int, int]
    registers: tuple[tuple[int, bytes], ...]
    events: bytes | None

    @classmethod
    def read(cls, fields: Fields) -> VcpuImage:
        """From what `read_vcpu` gave. Raises SnapshotError."""
        mp_state = fields.number("mp_state", 0, _LAST_MP_STATE)
        rows = [_register(fields, row) for row in fields.list("registers", most=_MOST_REGISTERS)]
        size = ffi.sizeof("struct kvm_vcpu_events")
        events = None if fields.absent("events") else fields.data("events", size)
        fields.end()
        special = dict(rows)
        counters = {number: int.from_bytes(special[number], "little") for number in COUNTERS if number in special}
        rest = tuple(row for row in rows if row[0] not in (VECTOR_LENGTHS, *COUNTERS))
        return cls(mp_state, special.get(VECTOR_LENGTHS), counters, rest, events)

    def put(self, vcpu: Vcpu) -> None:
        """Into a vCPU that was reset with the same features and vector lengths; all but its counters. Raises SnapshotError for
        what this KVM does not take."""
        registers = Registers(vcpu)
        for number, data in self.registers:
            _put(registers, number, data)
        try:
            if self.events is not None:
                vcpu.ioctl(lib.KVM_SET_VCPU_EVENTS, owners.view(self.events), "setting pending exceptions")
            state = ffi.new("struct kvm_mp_state *", {"mp_state": self.mp_state})
            vcpu.ioctl(lib.KVM_SET_MP_STATE, state, "setting the MP state")
        except KvmError as exc:
            raise SnapshotError(f"vCPU {vcpu.index} does not take its state on this host: {exc}") from exc

    def put_counters(self, vcpu: Vcpu, ticks: int) -> None:
        """Have them go on, `ticks` ahead, for all vCPUs of the VM. Raises SnapshotError."""
        registers = Registers(vcpu)
        for number, value in self.counters.items():
            _put(registers, number, (value + ticks & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "little"))


def _put(registers: Registers, number: int, data: bytes) -> None:
    """One that KVM refuses to have set, and that has the value already, is as it should be."""
    try:
        registers.write(number, data)
    except KvmError as exc:
        if _now(registers, number) != data:
            value = f"{int.from_bytes(data, 'little'):#x}"
            raise SnapshotError(f"KVM refuses {value} in register {number:#x} here ({exc}): {_ELSEWHERE}") from exc


def _now(registers: Registers, number: int) -> bytes | None:
    try:
        return registers.read(number)
    except KvmError:  # there is no such register here
        return None


def _register(fields: Fields, row: Any) -> tuple[int, bytes]:
    where = f"{fields.where}.registers"
    pair = dict(zip(("number", "data"), Fields({"row": row}, where).list("row", 2), strict=True))
    one = Fields(pair, where)
    number = one.number("number")
    if number & _ARCHITECTURE != _ARM64 or size_of(number) > _LARGEST:
        raise SnapshotError(f"{where}: there is no register {number:#x}")
    return number, one.data("data", size_of(number))
