"""CPUID of one vCPU, made from what KVM supports on this host. Pure.

KVM reports the features it can give a guest; what it cannot know is the guest's topology, and it leaves the hypervisor bit
to us (without it a kernel looks for no kvm-clock). Sources: Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E;
Documentation/virt/kvm/x86/cpuid.rst.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from aiovmm.errors import UsageError
from aiovmm.runtime.dataclass import dataclass, replace

__all__ = ["CpuTopology", "CpuidEntry", "adjust", "apic_id"]

SIGNIFICANT_INDEX = 1 << 0  # KVM_CPUID_FLAG_SIGNIFCANT_INDEX: the entry answers for this ECX value only
_HYPERVISOR, _X2APIC, _TSC_DEADLINE = 1 << 31, 1 << 21, 1 << 24  # leaf 1, ECX
_HTT, _MTRR = 1 << 28, 1 << 12  # leaf 1, EDX
_CMP_LEGACY, _TOPOEXT = 1 << 1, 1 << 22  # leaf 0x80000001, ECX
_LEVEL_SMT, _LEVEL_CORE, _LEVEL_DIE = 1, 2, 5  # leaf 0xB and 0x1F, ECX[15:8]; the die is 0x1F's alone
_AMD_VENDORS = (b"AuthenticAMD", b"HygonGenuine")
_TOPOLOGY_LEAVES = (0xB, 0x1F)


@dataclass(frozen=True)
class CpuidEntry:
    """One line of KVM_SET_CPUID2: the answer to EAX = `function` (and ECX = `index`, if `flags` has bit 0)."""

    function: int
    index: int = 0
    flags: int = 0
    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0


@dataclass(frozen=True)
class CpuTopology:
    """Sockets, cores a die, threads a core, and dies a socket. vCPU numbers count threads first, then cores, dies and sockets."""

    sockets: int = 1
    cores: int = 1
    threads: int = 1
    dies: int = 1

    def __post_init__(self) -> None:
        if min(self.sockets, self.cores, self.threads, self.dies) < 1:
            raise UsageError(f"a topology needs at least one socket, die, core and thread: {self}")

    @property
    def cpus(self) -> int:
        """Logical processors in all."""
        return self.sockets * self.logical

    @property
    def logical(self) -> int:
        """Logical processors in one socket."""
        return self.dies * self.cores * self.threads

    @property
    def thread_bits(self) -> int:
        """Width of the thread number in an APIC id."""
        return (self.threads - 1).bit_length()

    @property
    def die_shift(self) -> int:
        """Width of the thread and core numbers together: what is left of an APIC id after this shift is socket and die."""
        return self.thread_bits + (self.cores - 1).bit_length()

    @property
    def package_shift(self) -> int:
        """The same with the die number: what is left is the socket."""
        return self.die_shift + (self.dies - 1).bit_length()


def apic_id(topology: CpuTopology, cpu: int) -> int:
    """The x2APIC id of vCPU number `cpu`: socket, die, core and thread numbers, each in its own bits. Equal to `cpu` for one
    socket of one die of single-threaded cores."""
    core, thread = divmod(cpu, topology.threads)
    die, core = divmod(core, topology.cores)
    socket, die = divmod(die, topology.dies)
    return socket << topology.package_shift | die << topology.die_shift | core << topology.thread_bits | thread


def adjust(
    entries: Iterable[CpuidEntry],
    cpu_index: int,
    cpu_count: int,
    *,
    topology: CpuTopology | None = None,
    phys_bits: int | None = None,
    tsc_deadline: bool = True,
) -> list[CpuidEntry]:
    """KVM's supported `entries` as vCPU `cpu_index` of `cpu_count` shall see them.

    `topology` is one socket of `cpu_count` cores by default; `phys_bits` replaces the host's physical address width;
    `tsc_deadline` tells whether KVM has KVM_CAP_TSC_DEADLINE_TIMER. Raises UsageError if the topology does not fit.
    """
    topology = topology or CpuTopology(cores=cpu_count)
    if topology.cpus < cpu_count or not 0 <= cpu_index < cpu_count:
        raise UsageError(f"vCPU {cpu_index} of {cpu_count} does not fit {topology}")
    source = list(entries)
    by_function = {e.function: e for e in reversed(source)}
    amd = _is_amd(by_function)
    extended = amd and 0x8000001E in by_function and _has_caches(by_function.get(0x8000001D))
    view = _View(topology, apic_id(topology, cpu_index), amd, extended, phys_bits, tsc_deadline)
    result = [
        _EDITS.get(e.function, _unchanged)(e, view) for e in source if e.function not in (*_TOPOLOGY_LEAVES, 0x8000001E)
    ]
    highest = by_function[0].eax if 0 in by_function else 0
    for leaf in _TOPOLOGY_LEAVES:
        # 0xB may be missing from KVM's list although the highest leaf allows it; 0x1F only repeats it, unless there are dies
        if (leaf <= highest and (leaf == 0xB or leaf in by_function)) or (leaf == 0x1F and topology.dies > 1):
            result += _topology_leaves(leaf, view)
    if view.extended:
        result.append(_amd_topology(view))
    return result


@dataclass(frozen=True)
class _View:
    """What the edits need to know of the vCPU."""

    topology: CpuTopology
    apic_id: int
    amd: bool
    extended: bool  # AMD's leaves of topology and caches are there, and TOPOEXT says so, whether KVM did or not
    phys_bits: int | None
    tsc_deadline: bool


def _is_amd(by_function: dict[int, CpuidEntry]) -> bool:
    if 0 not in by_function:
        return False
    e = by_function[0]
    return b"".join(r.to_bytes(4, "little") for r in (e.ebx, e.edx, e.ecx)) in _AMD_VENDORS


def _has_caches(entry: CpuidEntry | None) -> bool:
    return entry is not None and entry.eax & 0x1F != 0


def _unchanged(entry: CpuidEntry, view: _View) -> CpuidEntry:
    return entry


def _highest_leaf(entry: CpuidEntry, view: _View) -> CpuidEntry:
    """Leaf 0: EAX is the highest leaf. Dies are told in 0x1F alone, which Linux reads of any vendor's processor that has it."""
    return replace(entry, eax=max(entry.eax, 0x1F)) if view.topology.dies > 1 else entry


def _features(entry: CpuidEntry, view: _View) -> CpuidEntry:
    """Leaf 1: hypervisor bit, x2APIC, MTRRs and TSC deadline timer, initial APIC id, number of logical processors."""
    logical = min(1 << view.topology.package_shift, 0xFF)
    ecx = entry.ecx | _HYPERVISOR | _X2APIC
    ecx = ecx | _TSC_DEADLINE if view.tsc_deadline else ecx & ~_TSC_DEADLINE
    edx = entry.edx | _MTRR | _HTT if view.topology.logical > 1 else entry.edx & ~_HTT | _MTRR
    ebx = entry.ebx & 0xFFFF | logical << 16 | (view.apic_id & 0xFF) << 24
    return replace(entry, ebx=ebx, ecx=ecx, edx=edx)


def _intel_cache(entry: CpuidEntry, view: _View) -> CpuidEntry:
    """Leaf 4: EAX[31:26] cores in the package - 1, EAX[25:14] threads that share this cache - 1."""
    if entry.eax & 0x1F == 0:
        return entry
    cores = min((1 << view.topology.package_shift - view.topology.thread_bits) - 1, 0x3F)
    return replace(entry, eax=_with_sharing(entry.eax, view) & 0x03FFFFFF | cores << 26)


def _amd_cache(entry: CpuidEntry, view: _View) -> CpuidEntry:
    """Leaf 0x8000001D: EAX[25:14] as in Intel's leaf 4."""
    return entry if entry.eax & 0x1F == 0 else replace(entry, eax=_with_sharing(entry.eax, view))


def _with_sharing(eax: int, view: _View) -> int:
    """Level 1 and 2 caches belong to a core, level 3 to the die."""
    level = eax >> 5 & 7
    bits = view.topology.die_shift if level >= 3 else view.topology.thread_bits
    return eax & ~(0xFFF << 14) | min((1 << bits) - 1, 0xFFF) << 14


def _extended_features(entry: CpuidEntry, view: _View) -> CpuidEntry:
    """Leaf 0x80000001: CmpLegacy, AMD's word for more than one logical processor, and that the leaves about them exist."""
    if not view.amd:
        return entry
    ecx = entry.ecx & ~(_CMP_LEGACY | _TOPOEXT)
    ecx |= (_CMP_LEGACY if view.topology.logical > 1 else 0) | (_TOPOEXT if view.extended else 0)
    return replace(entry, ecx=ecx)


def _address_sizes(entry: CpuidEntry, view: _View) -> CpuidEntry:
    """Leaf 0x80000008: EAX[7:0] physical address width, and EAX[23:16] as far as paging reaches; on AMD also ECX[7:0] logical
    processors - 1 and ECX[15:12] APIC id width."""
    if view.phys_bits is not None:
        usable = min(entry.eax >> 16 & 0xFF, view.phys_bits)  # 0: the same
        entry = replace(entry, eax=entry.eax & ~0xFF00FF | usable << 16 | view.phys_bits)
    if not view.amd:
        return entry
    logical, width = min(view.topology.logical - 1, 0xFF), min(view.topology.package_shift, 0xF)
    return replace(entry, ecx=entry.ecx & ~0xF0FF | logical | width << 12)


def _topology_leaves(leaf: int, view: _View) -> list[CpuidEntry]:
    """Leaf 0xB or 0x1F: the thread level, the core level, in 0x1F that of dies if there are any, and the level of type 0 that
    ends the list. The shift of the last one is the socket's."""
    t = view.topology
    smt = (t.thread_bits, t.threads, _LEVEL_SMT)
    whole = (t.package_shift, t.logical)
    above = [(*whole, _LEVEL_CORE)]
    if leaf == 0x1F and t.dies > 1:
        above = [(t.die_shift, t.cores * t.threads, _LEVEL_CORE), (*whole, _LEVEL_DIE)]
    levels = [smt, *above, (0, 0, 0)]
    return [
        CpuidEntry(leaf, i, SIGNIFICANT_INDEX, eax=shift, ebx=count, ecx=i | kind << 8, edx=view.apic_id)
        for i, (shift, count, kind) in enumerate(levels)
    ]


def _amd_topology(view: _View) -> CpuidEntry:
    """Leaf 0x8000001E: extended APIC id; EBX[15:8] threads a core - 1, EBX[7:0] core id; a node is a die, ECX[10:8] nodes a
    socket - 1."""
    t = view.topology
    core = view.apic_id >> t.thread_bits & 0xFF
    node = view.apic_id >> t.die_shift & 0xFF | min(t.dies - 1, 7) << 8
    return CpuidEntry(0x8000001E, eax=view.apic_id, ebx=core | min(t.threads - 1, 0xFF) << 8, ecx=node)


_EDITS: dict[int, Callable[[CpuidEntry, _View], CpuidEntry]] = {
    0x0: _highest_leaf,
    0x1: _features,
    0x4: _intel_cache,
    0x80000001: _extended_features,
    0x80000008: _address_sizes,
    0x8000001D: _amd_cache,
}
