"""Processors."""

from __future__ import annotations

import enum

from aiovmm.config.kinds import dataclass
from aiovmm.errors import ConfigError

__all__ = ["CPU_FEATURES", "IDLE", "MAX_CPUS", "CoreScheduling", "CpusConfig", "TopologyConfig"]

VCPU_NICE = 5  # see docs/embedding.md
IDLE = 20
"""For `vcpu_nice`: the threads of vCPUs are SCHED_IDLE."""

MAX_CPUS = 4096  # their names in the firmware's tables are C000 to CFFF; KVM may have its own, lower limit
CPU_FEATURES = ("amx", "invtsc", "pmu")
"""Processor features that a guest gets only if it is asked for."""


class CoreScheduling(enum.Enum):
    """What may share a core of the host, where cores have several hardware threads, with a vCPU while it runs: anything (OFF),
    other vCPUs of its guest (VM), or nothing (VCPU)."""

    OFF = "off"
    VM = "vm"
    VCPU = "vcpu"


@dataclass(frozen=True)
class TopologyConfig:
    """How the guest sees its processors laid out; `threads` per core, `cores` per die, `dies` per package, `packages`."""

    threads: int = 1
    cores: int = 1
    dies: int = 1
    packages: int = 1

    def __post_init__(self) -> None:
        for name in ("threads", "cores", "dies", "packages"):
            if not 1 <= getattr(self, name) <= MAX_CPUS:
                raise ConfigError("cpus.topology", f"{getattr(self, name)} {name} are not in 1..{MAX_CPUS}")

    @property
    def cpus(self) -> int:
        """Logical processors in all."""
        return self.threads * self.cores * self.dies * self.packages


@dataclass(frozen=True)
class CpusConfig:
    """`boot` processors, which is what the guest starts with. With `max` it may have between one and so many while it runs, by
    `vm.resize(cpus=)`. `topology` lays out all `max` (`boot`, where that is not given): None is one
    package of so many cores. `max_phys_bits` caps the width of guest-physical addresses, in bits (None: 46, and never more than
    the host's). `nested`: the guest may use virtualization itself, where the host lets it; off, for that is much of KVM to look
    for faults in. `kvm_hyperv`: it finds what a guest of Hyper-V would, for Windows, beside what KVM's own guests find.
    `features` are those that have to be asked for, of CPU_FEATURES, all of x86: AMX; performance counters (`pmu`); and `invtsc`:
    the guest is told that its time-stamp counter never stops and keeps its frequency also where KVM does not know that of the
    host's, as on a host that is itself a guest.
    `affinity` says which processors of the host a vCPU may run on; of one
    that is not there it is only remarked. `core_scheduling` says what may share a core with a vCPU.
    `vcpu_nice` is how far its thread stands back behind the event loop's, which serves all guests: 0..19, added to the process's
    own; IDLE has it run when the host has nothing else to do.
    """

    boot: int = 1
    max: int | None = None
    topology: TopologyConfig | None = None
    max_phys_bits: int | None = None
    nested: bool = False
    features: tuple[str, ...] = ()
    affinity: tuple[tuple[int, tuple[int, ...]], ...] = ()
    vcpu_nice: int = VCPU_NICE
    core_scheduling: CoreScheduling = CoreScheduling.OFF
    kvm_hyperv: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.boot <= MAX_CPUS:
            raise ConfigError("cpus.boot", f"{self.boot} is not in 1..{MAX_CPUS}")
        if self.max is not None and not self.boot <= self.max <= MAX_CPUS:
            raise ConfigError("cpus.max", f"{self.max} is not in boot ({self.boot})..{MAX_CPUS}")
        if self.topology is not None and self.topology.cpus != (self.max or self.boot):
            raise ConfigError(
                "cpus.topology",
                f"{self.topology.cpus} processors are laid out, and there are {self.max or self.boot}",
                "threads x cores x dies x packages must be max=, or boot= where that is not given",
            )
        if self.max_phys_bits is not None and not 32 <= self.max_phys_bits <= 255:
            raise ConfigError("cpus.max_phys_bits", f"{self.max_phys_bits} is not in 32..255")
        for feature in self.features:
            if feature not in CPU_FEATURES:
                raise ConfigError("cpus.features", f"{feature!r} is not known", f"known: {', '.join(CPU_FEATURES)}")
        if not 0 <= self.vcpu_nice <= IDLE:
            raise ConfigError(
                "cpus.vcpu_nice", f"{self.vcpu_nice} is not in 0..{IDLE}", f"{IDLE} is for idle times only"
            )
        self._check_affinity()

    def _check_affinity(self) -> None:
        vcpus = [vcpu for vcpu, _ in self.affinity]
        for vcpu, hosts in self.affinity:
            if vcpu < 0:
                raise ConfigError("cpus.affinity", f"there is no vCPU {vcpu}", "the first is 0")
            if vcpus.count(vcpu) > 1:
                raise ConfigError("cpus.affinity", f"names vCPU {vcpu} twice")
            if any(host < 0 for host in hosts):
                raise ConfigError("cpus.affinity", f"{min(hosts)} is no processor of the host", "the first is 0")
            if not hosts:
                raise ConfigError("cpus.affinity", f"leaves no processor of the host for vCPU {vcpu}")
