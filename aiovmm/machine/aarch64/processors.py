"""vCPUs as they come out of reset; the boot processor at the kernel's first instruction."""

from __future__ import annotations

from collections.abc import Sequence

from aiovmm.boot.aarch64 import CpuState, CpuTopology
from aiovmm.config import ConsoleMode, CpusConfig, HotplugMethod, VMConfig
from aiovmm.errors import ConfigError
from aiovmm.kvm.aarch64.features import VcpuFeatures, reset
from aiovmm.kvm.aarch64.registers import MPIDR_EL1, PC, PSTATE, Registers, x
from aiovmm.kvm.vcpu import Vcpu
from aiovmm.kvm.vmfd import VmFd

__all__ = ["affinities", "check", "create_vcpus", "enter", "topology_of"]


def check(config: VMConfig) -> None:
    """Raises ConfigError for what only other processors have, or their firmware."""
    if config.debug_console.mode is not ConsoleMode.OFF:
        raise ConfigError("debug_console", "is a port, and arm64 has none", "earlycon= prints to the serial port early")
    if config.platform.has_identity:
        reason = "who the machine is is told by SMBIOS, which kernels of arm64 are led to by EFI alone"
        raise ConfigError("platform", reason, "tell the guest by the kernel's command line, a disk or vsock")
    if config.numa:
        raise ConfigError("numa", "is not there on arm64: its device tree has one node", "leave it out")
    if config.cpus.max not in (None, config.cpus.boot):
        hint = "boot= is how many there are"
        raise ConfigError("cpus.max", "processors of an arm64 guest neither come nor go", hint)
    if config.memory.hotplug_size and config.memory.hotplug_method is HotplugMethod.ACPI:
        hint = "memory comes by hotplug_method=virtio-mem"
        raise ConfigError("memory.hotplug_method", "is not acpi on arm64, whose guests have a device tree", hint)
    if config.cpus.kvm_hyperv:
        raise ConfigError("cpus.kvm_hyperv", "is for x86 guests: KVM has none of it on arm64", "leave it out")
    for feature in config.cpus.features:
        raise ConfigError(
            "cpus.features", f"{feature!r} is a feature of x86 processors", f"leave features={feature} out"
        )


def create_vcpus(vm: VmFd, cpus: CpusConfig, features: VcpuFeatures) -> list[Vcpu]:
    """All of them; number 0 is the boot processor, the others wait until the guest starts them. Raises KvmError."""
    vcpus = [vm.create_vcpu(index) for index in range(cpus.boot)]
    reset(vm, vcpus, features)
    return vcpus


def affinities(vcpus: Sequence[Vcpu]) -> tuple[int, ...]:
    """MPIDR_EL1 of each: what the guest calls it by. Raises KvmError."""
    return tuple(Registers(vcpu).get(MPIDR_EL1) for vcpu in vcpus)


def enter(vcpu: Vcpu, boot: CpuState) -> None:
    """Have the boot processor begin with `boot`. Raises KvmError."""
    registers = Registers(vcpu)
    for number, value in {PSTATE: boot.pstate, PC: boot.pc, x(0): boot.x0}.items():
        registers.set(number, value)


def topology_of(cpus: CpusConfig) -> CpuTopology | None:
    """How the guest sees them laid out: dies of the configuration are clusters, for what a package has of its own is little."""
    t = cpus.topology
    return None if t is None else CpuTopology(threads=t.threads, cores=t.cores, clusters=t.dies)
