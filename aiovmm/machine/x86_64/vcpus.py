"""vCPUs as they come out of reset: CPUID, MSRs, FPU, local APIC; the boot processor at the kernel's first instruction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aiovmm.boot.x86_64 import CpuidEntry as BootCpuid
from aiovmm.boot.x86_64 import CpuState, boot_msrs
from aiovmm.boot.x86_64.cpu import DescriptorTable as BootTable
from aiovmm.boot.x86_64.cpu import Segment as BootSegment
from aiovmm.boot.x86_64.cpuid import CpuTopology, adjust, apic_id
from aiovmm.boot.x86_64.cpuid_policy import HOST_LEAVES, allow, has_amx, reachable_bits, tell_of_host, visible_bits
from aiovmm.config import CpusConfig
from aiovmm.errors import ConfigError
from aiovmm.kvm import Kvm
from aiovmm.kvm.vcpu import Vcpu
from aiovmm.kvm.vmfd import VmFd
from aiovmm.kvm.x86_64 import cpuid
from aiovmm.kvm.x86_64.cpuid import CpuidEntry, of_host, request_amx
from aiovmm.kvm.x86_64.state import DescriptorTable, Regs, Segment
from aiovmm.kvm.x86_64.vcpustate import VcpuState
from aiovmm.runtime.dataclass import dataclass, replace

__all__ = ["Processor", "create_vcpus", "topology_of"]

_LAST_XAPIC_ID = 254
_KVM_FEATURES, _MSI_EXT_DEST_ID = 0x40000001, 1 << 15  # Documentation/virt/kvm/x86/cpuid.rst


def topology_of(cpus: CpusConfig) -> CpuTopology:
    """What the guest is told of its processors: one package of cores, unless the configuration lays them out."""
    t = cpus.topology
    return CpuTopology(cores=cpus.boot) if t is None else CpuTopology(t.packages, t.cores, t.threads, t.dies)


@dataclass(frozen=True)
class Processor:
    """What guests of `cpus` are shown of this host's: CPUID but for what each vCPU adds, and how far addresses reach, in bits."""

    entries: Sequence[BootCpuid]
    visible_bits: int
    reachable_bits: int

    @classmethod
    def of(cls, kvm: Kvm, cpus: CpusConfig) -> Processor:
        """Before the first vCPU of the process, if AMX is asked for. Raises ConfigError and KvmError."""
        amx = "amx" in cpus.features
        if amx:
            request_amx()
        supported = _plain(cpuid.get_supported(kvm.fd))
        if amx and not has_amx(supported):
            raise ConfigError("cpus.features", "KVM offers no AMX on this host", "leave features=amx out")
        cap = cpus.max_phys_bits
        entries = allow(supported, nested=cpus.nested, amx=amx)
        return cls(entries, visible_bits(supported, cap), reachable_bits(supported, cap))


def _plain(entries: Iterable[CpuidEntry]) -> list[BootCpuid]:
    return [BootCpuid(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx) for e in entries]


def create_vcpus(vm: VmFd, cpus: CpusConfig, processor: Processor, boot: CpuState) -> list[Vcpu]:
    """All vCPUs; number 0 enters the kernel with `boot`, the others wait for its start-up message. Raises KvmError."""
    host = _plain(of_host(HOST_LEAVES))
    msrs = dict(boot_msrs())
    topology = topology_of(cpus)
    wide = apic_id(topology, (cpus.max or cpus.boot) - 1) > _LAST_XAPIC_ID
    vcpus = []
    for index in range(cpus.boot):
        vcpu = vm.create_vcpu(index, id_=apic_id(topology, index))
        state = VcpuState(vcpu)
        entries = tell_of_host(processor.entries, host, tsc_khz=state.get_tsc_khz())
        adjusted = adjust(entries, index, cpus.boot, topology=topology, phys_bits=processor.visible_bits)
        if wide:
            adjusted = [_with_wide_destinations(e) if e.function == _KVM_FEATURES else e for e in adjusted]
        state.set_cpuid(CpuidEntry(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx) for e in adjusted)
        state.set_msrs(msrs)
        state.reset_fpu()
        state.wire_local_interrupts()
        vcpus.append(vcpu)
    _enter(VcpuState(vcpus[0]), boot)
    return vcpus


def _with_wide_destinations(features: BootCpuid) -> BootCpuid:
    """Interrupts reach APIC ids above 254: the machine takes 15 bits of a destination from messages (machine.interrupts)."""
    return replace(features, eax=features.eax | _MSI_EXT_DEST_ID)


def _enter(state: VcpuState, boot: CpuState) -> None:
    sregs = state.get_sregs()
    for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt"):
        setattr(sregs, name, _segment(getattr(boot, name)))
    sregs.gdt, sregs.idt = _table(boot.gdt), _table(boot.idt)
    sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = boot.cr0, boot.cr3, boot.cr4, boot.efer
    state.set_sregs(sregs)
    state.set_regs(Regs(rip=boot.rip, rsp=boot.rsp, rsi=boot.rsi, rbx=boot.rbx, rflags=boot.rflags))


def _segment(s: BootSegment) -> Segment:
    return Segment(s.base, s.limit, s.selector, s.type, s.present, s.dpl, s.db, s.s, s.l, s.g, s.avl, s.unusable)


def _table(t: BootTable) -> DescriptorTable:
    return DescriptorTable(t.base, t.limit)
