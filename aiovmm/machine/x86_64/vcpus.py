"""vCPUs as they come out of reset: CPUID, MSRs, FPU, local APIC; the boot processor at the kernel's first instruction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aiovmm.boot.x86_64 import CpuidEntry as BootCpuid
from aiovmm.boot.x86_64 import CpuState, boot_msrs
from aiovmm.boot.x86_64.cpuid import CpuTopology, adjust, apic_id
from aiovmm.boot.x86_64.cpuid_policy import HOST_LEAVES, allow, has_amx, reachable_bits, tell_of_host, visible_bits
from aiovmm.config import CpusConfig
from aiovmm.config.cpus import CPU_FEATURES
from aiovmm.errors import ConfigError
from aiovmm.kvm import Kvm
from aiovmm.kvm.vcpu import Vcpu
from aiovmm.kvm.vmfd import VmFd
from aiovmm.kvm.x86_64 import cpuid
from aiovmm.kvm.x86_64.cpuid import CpuidEntry, of_host, request_amx
from aiovmm.kvm.x86_64.state import Regs
from aiovmm.kvm.x86_64.vcpustate import VcpuState
from aiovmm.machine.interrupts import OffLoop
from aiovmm.runtime.dataclass import dataclass, replace
from aiovmm.runtime.prepared import Prepared
from aiovmm.runtime.tasks import finish

__all__ = ["Processor", "add_vcpu", "create_vcpus", "topology_of"]

_LAST_XAPIC_ID = 254
_UNINITIALIZED = 1  # KVM_MP_STATE_UNINITIALIZED
_SREGS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt", "gdt", "idt", "cr0", "cr3", "cr4", "efer")
_KVM_FEATURES, _MSI_EXT_DEST_ID = 0x40000001, 1 << 15  # Documentation/virt/kvm/x86/cpuid.rst


def topology_of(cpus: CpusConfig) -> CpuTopology:
    """What the guest is told of its processors: one package of cores, unless the configuration lays them out."""
    t = cpus.topology
    return (
        CpuTopology(cores=cpus.max or cpus.boot) if t is None else CpuTopology(t.packages, t.cores, t.threads, t.dies)
    )


@dataclass(frozen=True, eq=False)
class Processor:
    """What guests of `cpus` are shown of this host's: CPUID but for what each vCPU adds, and how far addresses reach, in bits.
    It is the same for all guests with these `cpus`."""

    cpus: CpusConfig
    entries: Sequence[BootCpuid]
    host: Sequence[BootCpuid]  # HOST_LEAVES
    visible_bits: int
    reachable_bits: int
    hyperv: Sequence[BootCpuid]  # what KVM has of its leaves, if that is asked for
    _packed: Prepared[bytes]

    @classmethod
    def of(cls, kvm: Kvm, cpus: CpusConfig) -> Processor:
        """Before the first vCPU of the process, if AMX is asked for. Raises ConfigError and KvmError."""
        if "amx" in cpus.features:
            request_amx()
        return _processors.get((kvm.identity, cpus), lambda: cls._of(kvm, cpus))

    @classmethod
    def _of(cls, kvm: Kvm, cpus: CpusConfig) -> Processor:
        amx = "amx" in cpus.features
        supported = _plain(cpuid.get_supported(kvm.fd))
        if amx and not has_amx(supported):
            raise ConfigError("cpus.features", "KVM offers no AMX on this host", "leave features=amx out")
        cap = cpus.max_phys_bits
        asked = {name: name in cpus.features for name in CPU_FEATURES}
        entries = allow(supported, nested=cpus.nested, **asked)
        host = _plain(of_host(HOST_LEAVES))
        hyperv = _plain(cpuid.get_supported_hyperv(kvm.fd)) if cpus.kvm_hyperv else []
        visible, reachable = visible_bits(supported, cap), reachable_bits(supported, cap)
        return cls(cpus, entries, host, visible, reachable, hyperv, Prepared(256))

    def cpuid(self, index: int, tsc_khz: int | None) -> bytes:
        """Of vCPU number `index`, whose time-stamp counter has this frequency: `struct kvm_cpuid2`."""
        return self._packed.get((index, tsc_khz), lambda: self._cpuid(index, tsc_khz))

    def _cpuid(self, index: int, tsc_khz: int | None) -> bytes:
        topology, count = topology_of(self.cpus), self.cpus.max or self.cpus.boot
        entries = tell_of_host(self.entries, self.host, tsc_khz=tsc_khz)
        adjusted = adjust(entries, index, count, topology=topology, phys_bits=self.visible_bits)
        if apic_id(topology, count - 1) > _LAST_XAPIC_ID:
            adjusted = [_with_wide_destinations(e) if e.function == _KVM_FEATURES else e for e in adjusted]
        if self.hyperv:
            from aiovmm.boot.x86_64.hyperv import with_hyperv  # for who asks

            adjusted = with_hyperv(adjusted, self.hyperv)
        return cpuid.pack(CpuidEntry(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx) for e in adjusted)


_processors: Prepared[Processor] = Prepared(64)


def _plain(entries: Iterable[CpuidEntry]) -> list[BootCpuid]:
    return [BootCpuid(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx) for e in entries]


def create_vcpus(vm: VmFd, processor: Processor, boot: CpuState) -> tuple[list[Vcpu], list[bytes]]:
    """All vCPUs, and the CPUID of each; number 0 enters the kernel with `boot`, the others wait for its start-up message. Raises
    KvmError."""
    topology = topology_of(processor.cpus)
    vcpus = [vm.create_vcpu(index, id_=apic_id(topology, index)) for index in range(processor.cpus.boot)]
    cpuids = [prepare(vcpu, processor) for vcpu in vcpus]
    _enter(VcpuState(vcpus[0]), boot)
    return vcpus, cpuids


def prepare(vcpu: Vcpu, processor: Processor) -> bytes:
    """Have it wait for a start-up message, as it comes out of reset; its CPUID. Raises KvmError."""
    state = VcpuState(vcpu)
    packed = processor.cpuid(vcpu.index, state.get_tsc_khz())
    state.set_packed_cpuid(packed)
    if processor.hyperv:
        state.enable_synic()
    state.set_msrs(dict(boot_msrs()))
    state.reset_fpu()
    state.wire_local_interrupts()
    return packed


async def add_vcpu(
    vm: VmFd, processor: Processor, index: int, off_loop: OffLoop, prepared: bytes | None
) -> tuple[Vcpu, bytes]:
    """One more, while the others run, and its CPUID. KVM cannot take one back, so one that was there before is used again:
    `prepared` is the CPUID that it was given, if it got so far. Raises KvmError."""
    if prepared is not None:
        VcpuState(vm.vcpus[index]).set_mp_state(_UNINITIALIZED)  # until the guest sends INIT and a start-up message
        return vm.vcpus[index], prepared
    if index not in vm.vcpus:
        await finish(_made(vm, processor, index, off_loop))  # KVM has it then, whoever has been cancelled
    return vm.vcpus[index], prepare(vm.vcpus[index], processor)


async def _made(vm: VmFd, processor: Processor, index: int, off_loop: OffLoop) -> None:
    id_ = apic_id(topology_of(processor.cpus), index)
    waiting = off_loop(lambda: vm.open_vcpu(index, id_), None)
    if waiting is not None:
        await waiting
    vm.adopt_vcpu(index, id_)


def _with_wide_destinations(features: BootCpuid) -> BootCpuid:
    """Interrupts reach APIC ids above 254: the machine takes 15 bits of a destination from messages (machine.interrupts)."""
    return replace(features, eax=features.eax | _MSI_EXT_DEST_ID)


def _enter(state: VcpuState, boot: CpuState) -> None:
    state.change_sregs(**{name: getattr(boot, name) for name in _SREGS})
    state.set_regs(Regs(rip=boot.rip, rsp=boot.rsp, rsi=boot.rsi, rbx=boot.rbx, rflags=boot.rflags))
