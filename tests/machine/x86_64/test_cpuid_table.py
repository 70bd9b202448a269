"""What of CPUID differs from what KVM offers is what docs/reference.md says of it, leaf by leaf, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from aiovmm.config import CpusConfig, TopologyConfig
from aiovmm.errors import KvmError
from aiovmm.kvm import Kvm
from aiovmm.kvm.x86_64 import cpuid
from aiovmm.kvm.x86_64.cpuid import SIGNIFICANT_INDEX, CpuidEntry
from aiovmm.machine.x86_64 import vcpus
from aiovmm.machine.x86_64.vcpus import Processor

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "reference.md"
TITLE = "## What a guest sees of its processor"
REGISTERS = ("eax", "ebx", "ecx", "edx")
WHOLE = (1 << 32) - 1

Place = tuple[int, int | None, str]  # leaf, index (None: any) and register
Bits = dict[tuple[int, int, str], int]
"""By leaf, index and register: a mask."""

SHAPES = [
    CpusConfig(),
    CpusConfig(4),
    CpusConfig(8, topology=TopologyConfig(threads=2, cores=2, dies=1, packages=2)),
    CpusConfig(8, topology=TopologyConfig(threads=2, cores=2, dies=2, packages=1)),
    CpusConfig(3, max=300),
    CpusConfig(nested=True, features=("pmu",)),
    CpusConfig(2, max_phys_bits=39),
]
KHZ = 2_400_000


def named() -> list[tuple[Place, int]]:
    """The table's first column: `0x1 EBX[31:24]` is 8 bits of every index of leaf 1, `0xD.0 ECX` a register, `0xB` all four."""
    section = DOCUMENT.read_text().partition(TITLE)[2].partition("\n## ")[0]
    cells = " ".join(line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `"))
    found: list[tuple[Place, int]] = []
    for leaf, index, register, high, low in re.findall(
        r"`(0x[0-9A-F]+)(?:\.(\d+))?(?: (E[A-D]X)(?:\[(\d+)(?::(\d+))?\])?)?`", cells
    ):
        mask = sum(1 << bit for bit in range(int(low or high), int(high) + 1)) if high else WHOLE
        for name in [register.lower()] if register else REGISTERS:
            found.append(((int(leaf, 16), int(index) if index else None, name), mask))
    assert len(re.findall("`", cells)) // 2 == len(re.findall(r"`0x[^`]*`", cells)), "each word is a leaf's"
    return found


def differences(offered: Iterable[CpuidEntry], shown: Iterable[CpuidEntry]) -> Bits:
    """A leaf that one of them has not is one of zeros there: so a processor answers."""
    theirs, ours = ({(e.function, e.index): e for e in entries} for entries in (offered, shown))
    bits: Bits = {}
    for function, index in theirs.keys() | ours.keys():
        for name in REGISTERS:
            values = [getattr(side.get((function, index)), name, 0) for side in (theirs, ours)]
            if values[0] != values[1]:
                bits[function, index, name] = values[0] ^ values[1]
    return bits


def unnamed(bits: Bits) -> list[str]:
    """What of `bits` the table does not have."""
    table: dict[Place, int] = {}
    for place, mask in named():
        table[place] = table.get(place, 0) | mask
    told = {
        (leaf, index, name): mask & ~(table.get((leaf, None, name), 0) | table.get((leaf, index, name), 0))
        for (leaf, index, name), mask in bits.items()
    }
    return [f"{leaf:#x}.{index} {name} {mask:#010x}" for (leaf, index, name), mask in sorted(told.items()) if mask]


def shown(kvm: Kvm, cpus: CpusConfig) -> Iterator[list[CpuidEntry]]:
    """To the first vCPU and to the last."""
    processor = Processor._of(kvm, cpus)
    for index in {0, (cpus.max or cpus.boot) - 1}:
        yield cpuid.unpack(processor.cpuid(index, KHZ))


@pytest.mark.kvm
@pytest.mark.parametrize("cpus", SHAPES, ids=lambda cpus: f"{cpus.boot}-{cpus.topology or cpus.max or ''}")
def test_nothing_else_differs_on_this_host(cpus: CpusConfig) -> None:
    try:
        kvm = Kvm.open()
    except KvmError as exc:
        pytest.skip(f"/dev/kvm cannot be used: {exc}")
    with kvm:
        offered = cpuid.get_supported(kvm.fd)
        for entries in shown(kvm, cpus):
            assert unnamed(differences(offered, entries)) == []
            flags = {(e.function, e.index): e.flags for e in offered}
            assert all(flags.get((e.function, e.index), e.flags) == e.flags for e in entries)


# -- hosts that offer every bit, or none

LEAVES = [*range(0x24), 0x40000000, 0x40000001, *range(0x80000000, 0x80000023)]
INDICES = {4: range(4), 7: range(3), 0xB: range(2), 0xD: range(20), 0x1D: range(2), 0x1E: range(2), 0x1F: range(3)} | {
    0x8000001D: range(4)
}
CACHES = [1 | level << 5 for level in (1, 1, 2, 3)]


def host(vendor: bytes, value: int, leaves: Sequence[int]) -> list[CpuidEntry]:
    """KVM's list of one whose registers are all `value` but where that would make no sense: the highest leaf, the vendor's name,
    kinds of caches, sizes of states."""
    entries = [
        CpuidEntry(leaf, index, SIGNIFICANT_INDEX if leaf in INDICES else 0, *[value] * 4)
        for leaf in leaves
        for index in INDICES.get(leaf, (0,))
    ]
    words = [int.from_bytes(vendor[at : at + 4], "little") for at in (0, 8, 4)]
    fixed = {0: CpuidEntry(0, 0, 0, max(leaf for leaf in leaves if leaf < 1 << 16), *words)}
    sharing = value & 0xFFFFC000

    def own(entry: CpuidEntry) -> CpuidEntry:
        if entry.function in (4, 0x8000001D):
            return CpuidEntry(entry.function, entry.index, entry.flags, CACHES[entry.index] | sharing, *[value] * 3)
        if entry.function == 0xD and entry.index >= 2:  # the size and place of a state's component
            return CpuidEntry(0xD, entry.index, entry.flags, 64, 576 + 64 * entry.index, value, value)
        return fixed.get(entry.function, entry)

    return [own(entry) for entry in entries]


HOSTS = {
    f"{vendor.decode()}-{'all' if value else 'none'}-{'short' if len(leaves) < len(LEAVES) else 'long'}": host(
        vendor, value, leaves
    )
    for vendor in (b"GenuineIntel", b"AuthenticAMD")
    for value in (0, WHOLE)
    for leaves in (LEAVES, [leaf for leaf in LEAVES if leaf not in (0xB, *range(0x18, 0x24), 0x8000001E)])
}
OWN = [CpuidEntry(leaf, 0, 0, *[0x55AA55AA | 1 << 8] * 4) for leaf in range(0x80000002, 0x80000008)]


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Bits:
    """All that ever differs on these hosts, whatever is asked for."""
    bits: Bits = {}
    monkeypatch.setattr(vcpus, "of_host", lambda _: OWN)
    nobody = cast(Any, SimpleNamespace(fd=-1))
    for offered in HOSTS.values():
        monkeypatch.setattr(cpuid, "get_supported", lambda _, offered=offered: offered)
        for cpus in SHAPES:
            for entries in shown(nobody, cpus):
                for place, mask in differences(offered, entries).items():
                    bits[place] = bits.get(place, 0) | mask
    return bits


def test_nothing_else_differs_on_any_host(found: Bits) -> None:
    assert unnamed(found) == []


def test_all_that_is_named_differs_somewhere(found: Bits) -> None:
    """Of what is named as a whole leaf, any register."""
    lacking = []
    for (leaf, index, name), mask in named():
        if not any(
            bits & mask
            for (f, i, r), bits in found.items()
            if f == leaf and index in (None, i) and (r == name or mask == WHOLE)
        ):
            lacking.append(f"{leaf:#x} {index} {name} {mask:#010x}")
    assert lacking == []
