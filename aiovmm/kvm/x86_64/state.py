"""Architectural state of a vCPU as plain data, to and from KVM's structures."""

from __future__ import annotations

from typing import Any

from aiovmm.runtime.dataclass import dataclass, field_types

__all__ = ["BLOBS", "DescriptorTable", "MpState", "Regs", "Segment", "Sregs"]


class MpState:
    """KVM_MP_STATE_*: what a vCPU does when it is run."""

    RUNNABLE = 0
    UNINITIALIZED = 1  # waits for INIT
    INIT_RECEIVED = 2  # waits for SIPI
    HALTED = 3
    SIPI_RECEIVED = 4


@dataclass()
class Regs:
    """General registers."""

    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rsp: int = 0
    rbp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0
    rflags: int = 2


@dataclass()
class Segment:
    """A segment register with its hidden part. `limit` is in bytes, whatever the granularity."""

    base: int = 0
    limit: int = 0
    selector: int = 0
    type: int = 0
    present: int = 0
    dpl: int = 0
    db: int = 0
    s: int = 0
    l: int = 0  # noqa: E741 - the architecture's name: 64-bit code
    g: int = 0
    avl: int = 0
    unusable: int = 0


@dataclass()
class DescriptorTable:
    """GDTR or IDTR."""

    base: int = 0
    limit: int = 0


@dataclass()
class Sregs:
    """Segment, control and table registers."""

    cs: Segment
    ds: Segment
    es: Segment
    fs: Segment
    gs: Segment
    ss: Segment
    tr: Segment
    ldt: Segment
    gdt: DescriptorTable
    idt: DescriptorTable
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    cr8: int
    efer: int
    apic_base: int
    interrupt_bitmap: tuple[int, int, int, int] = (0, 0, 0, 0)


BLOBS = {
    "fpu": "struct kvm_fpu",
    "lapic": "struct kvm_lapic_state",
    "vcpu_events": "struct kvm_vcpu_events",
    "debugregs": "struct kvm_debugregs",
    "xsave": "struct kvm_xsave",
    "xcrs": "struct kvm_xcrs",
}
"""State that is kept as the bytes of KVM's own structure: name (of KVM_GET_name and KVM_SET_name) to structure."""


def to_plain(cls: type, struct: Any) -> Any:
    """An instance of `cls` from the structure's fields of the same names."""
    return cls(**{name: _value(name, getattr(struct, name)) for name in field_types(cls)})


def from_plain(plain: Any, struct: Any) -> None:
    """Store every field of `plain` into the structure."""
    for name in field_types(plain):
        value = getattr(plain, name)
        if isinstance(value, (Segment, DescriptorTable)):
            from_plain(value, getattr(struct, name))
        else:
            setattr(struct, name, value)


def _value(name: str, value: Any) -> Any:
    if isinstance(value, int):
        return value
    if name in ("gdt", "idt"):
        return to_plain(DescriptorTable, value)
    if name == "interrupt_bitmap":
        return tuple(value)
    return to_plain(Segment, value)
