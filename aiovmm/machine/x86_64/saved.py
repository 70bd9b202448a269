"""A PC's processors and clocks as plain data, and made anew from it.

Time goes on for a guest while it is in a snapshot (machine.moment): its time-stamp counters are ahead by what has passed, and so
is kvm-clock where the guest keeps its time by that (kvm/x86_64/clock.py).
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property

from aiovmm.boot.x86_64 import CpuidEntry as BootCpuid
from aiovmm.boot.x86_64.cpuid import apic_id
from aiovmm.boot.x86_64.cpuid_missing import missing
from aiovmm.config import CpusConfig
from aiovmm.errors import SnapshotError
from aiovmm.kvm import Kvm
from aiovmm.kvm.vcpu import Vcpu
from aiovmm.kvm.vmfd import VmFd
from aiovmm.kvm.x86_64 import cpuid
from aiovmm.kvm.x86_64.clock import GuestClock, set_clock, stands_still
from aiovmm.kvm.x86_64.vcpuimage import VcpuImage, VcpuSizes, put_counters, read_counters, read_vcpu
from aiovmm.machine.moment import Moment
from aiovmm.machine.restored import Restored
from aiovmm.machine.x86_64.vcpus import Processor, topology_of
from aiovmm.runtime.dataclass import dataclass
from aiovmm.runtime.plain import Fields, State

__all__ = ["make_processors", "save_processors"]

_LONGEST = 1 << 62  # ns


def save_processors(kvm: Kvm, vm: VmFd, clock: GuestClock, vcpus: list[Vcpu], cpuids: list[bytes]) -> State:
    """Of all `vcpus`, which stand still and were given these CPUIDs. In a thread. Raises KvmError, SnapshotError."""
    sizes = VcpuSizes.of(kvm.fd, vm.fd)
    saved = [read_vcpu(vcpu, packed, sizes) for vcpu, packed in zip(vcpus, cpuids, strict=True)]
    moment = {"clock_ns": clock.now, **Moment.now().save()}
    read_counters(vcpus, saved)  # at that moment, too
    return {**moment, "vcpus": saved}


def make_processors(
    restored: Restored, kvm: Kvm, vm: VmFd, cpus: CpusConfig
) -> tuple[list[Vcpu], list[bytes], GuestClock, Collection[int]]:
    """All vCPUs as they were, in `vm`, and the CPUID of each; kvm-clock; and the vectors that their local APICs hold. In a
    thread. Raises KvmError, SnapshotError."""

    def read() -> _Processors:
        return _Processors.read(Fields(restored.state, "machine").fields("board").fields("processors"), kvm, vm, cpus)

    processors = restored.once("processors", read)
    passed = processors.moment.passed_ns()
    vcpus = processors.make(vm, passed)
    clock = processors.make_clock(vm, passed)
    return vcpus, [image.packed for image in processors.vcpus], clock, processors.held


@dataclass(frozen=True, eq=False)
class _Processors:
    """Those of one guest, checked, for any number of machines."""

    cpus: CpusConfig
    clock_ns: int
    moment: Moment
    vcpus: tuple[VcpuImage, ...]

    @classmethod
    def read(cls, fields: Fields, kvm: Kvm, vm: VmFd, cpus: CpusConfig) -> _Processors:
        """From what `save_processors` gave. Raises SnapshotError: for state that is none, and for what this host cannot do."""
        sizes = VcpuSizes.of(kvm.fd, vm.fd)
        image = cls(
            cpus,
            fields.number("clock_ns", 0, _LONGEST),
            Moment.read(fields),
            tuple(VcpuImage.read(vcpu, sizes) for vcpu in fields.several("vcpus", cpus.boot)),
        )
        fields.end()
        image._check_features(Processor.of(kvm, cpus))
        return image

    @cached_property
    def held(self) -> frozenset[int]:
        """By any local APIC."""
        return frozenset().union(*(image.held for image in self.vcpus))

    def _check_features(self, processor: Processor) -> None:
        for index, vcpu in enumerate(self.vcpus):
            here = cpuid.unpack(processor.cpuid(index, vcpu.tsc_khz or None))
            if lacking := missing(_plain(vcpu.cpuid), _plain(here)):
                raise SnapshotError(
                    f"this host cannot go on with it: its processor, or KVM, lacks {', '.join(lacking)}; restore it where "
                    "they are"
                )

    @cached_property
    def _clock_stood(self) -> bool:
        return stands_still(self.vcpus[0].packed, (vcpu.mp_state for vcpu in self.vcpus))

    def make_clock(self, vm: VmFd, passed: int) -> GuestClock:
        """kvm-clock, `passed` ns after it was saved: it stands until the guest runs, or has gone on. Raises KvmError."""
        if self._clock_stood:
            return GuestClock(vm, self.vcpus[0].packed, self.clock_ns)
        set_clock(vm, self.clock_ns + passed)
        return GuestClock(vm, self.vcpus[0].packed)

    def make(self, vm: VmFd, passed: int) -> list[Vcpu]:
        """All vCPUs, as they were, `passed` ns ago. In a thread. Raises KvmError, SnapshotError."""
        topology = topology_of(self.cpus)
        vcpus = [vm.create_vcpu(index, id_=apic_id(topology, index)) for index in range(len(self.vcpus))]
        for vcpu, image in zip(vcpus, self.vcpus, strict=True):
            image.put(vcpu)
        put_counters(vcpus, self.vcpus, passed)
        return vcpus


def _plain(entries: tuple[cpuid.CpuidEntry, ...] | list[cpuid.CpuidEntry]) -> list[BootCpuid]:
    return [BootCpuid(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx) for e in entries]
