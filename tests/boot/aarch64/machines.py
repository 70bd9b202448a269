"""Machines to be described: as large and as odd as a user can have them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from aiovmm.boot.aarch64 import CpuTopology, Hardware, Seeds, gic_of, layout
from aiovmm.boot.pci import EndpointRange, IntxWire, PciSegment, VirtioIommu, Window

SEEDS = Seeds(bytes(range(64)), 0x0123456789ABCDEF)
MIB = 1 << 20


def mpidr(index: int) -> int:
    """As KVM gives it to vCPU `index`: sixteen to a cluster (arch/arm64/kvm/sys_regs.c, reset_mpidr)."""
    return 1 << 31 | (index & 15) | (index >> 4 & 255) << 8 | (index >> 12 & 255) << 16


def segments(count: int, start64: int = 1 << 44, wires: tuple[IntxWire, ...] = ()) -> tuple[PciSegment, ...]:
    share = layout.PCI_MMIO32_SIZE // count // MIB * MIB
    return tuple(
        PciSegment(
            n,
            layout.ECAM + n * layout.ECAM_PER_SEGMENT,
            Window(layout.PCI_MMIO32 + n * share, share),
            Window(start64 + (n << 32), 1 << 32),
            intx=wires,
        )
        for n in range(count)
    )


def hardware(vcpus: int = 1, **more: Any) -> Hardware:
    settings: dict[str, Any] = {"pci_segments": segments(1), **more}
    return Hardware(tuple(map(mpidr, range(vcpus))), gic_of(vcpus), **settings)


@st.composite
def any_hardware(draw: st.DrawFn) -> Hardware:
    vcpus = draw(st.integers(1, 20) | st.sampled_from([64, 512]))
    count = draw(st.integers(1, 4) | st.just(96))
    slots = draw(st.sets(st.integers(1, 31), max_size=5))
    wires = tuple(IntxWire(slot, draw(st.sampled_from(layout.INTX_SPIS))) for slot in sorted(slots))
    topology = draw(st.none() | st.builds(CpuTopology, st.integers(1, 2), st.integers(1, 8), st.integers(1, 3)))
    return hardware(
        vcpus,
        pci_segments=segments(count, wires=wires),
        topology=topology,
        pmu=draw(st.booleans()),
        iommu=draw(st.none() | iommus(count)),
        generation=draw(st.booleans()),
        **dict.fromkeys(draw(st.sets(st.sampled_from(["uart", "rtc", "gpio"])))),
    )


@st.composite
def iommus(draw: st.DrawFn, count: int) -> VirtioIommu:
    own = draw(st.integers(1, 31))
    behind = draw(st.sets(st.tuples(st.integers(0, count - 1), st.integers(1, 31)), max_size=6))
    home = draw(st.integers(0, count - 1))
    ranges = [EndpointRange(n, slot << 3, slot << 3) for n, slot in sorted(behind) if (n, slot) != (home, own)]
    return VirtioIommu(home, own << 3, tuple(ranges))


__all__ = ["SEEDS", "any_hardware", "hardware", "mpidr", "segments"]
