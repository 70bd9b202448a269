"""Structures that are packed by hand have the size that the kernel's headers give them."""

from __future__ import annotations

from aiovmm.bus import Policy
from aiovmm.kvm import event_batch, routing
from aiovmm.kvm.x86_64 import cpuid, msrs
from aiovmm.native import ffi, lib


def test_sizes() -> None:
    assert cpuid._ENTRY.size == ffi.sizeof("struct kvm_cpuid_entry2")
    assert msrs._ENTRY.size == ffi.sizeof("struct kvm_msr_entry")
    assert routing._ENTRY.size == ffi.sizeof("struct kvm_irq_routing_entry")
    assert event_batch.EVENT.size == ffi.sizeof("struct avmm_event")


def test_the_run_loops_policy_bits_are_the_buss() -> None:
    assert [value for name, value in vars(Policy).items() if name.isupper() and value] == [
        lib.AVMM_SHADOW_READ,
        lib.AVMM_NOTE_READ,
        lib.AVMM_POSTED_WRITE,
        lib.AVMM_LATCH_WRITE,
        lib.AVMM_IGNORE_WRITE,
        lib.AVMM_POSTED_DWORD,
        lib.AVMM_LAZY_WRITE,
        lib.AVMM_DROP_SAME,
    ]
