"""Processors, interrupt controller and clocks of an arm64 machine as plain data, and made anew from it.

Time goes on for a guest while it is in a snapshot (machine.moment): its counters are ahead by what has passed, unless it was at
work (kvm/aarch64/clock.py). They have to count as fast as they did: a guest asks once how fast that is, and nothing scales it.
"""

from __future__ import annotations

from collections.abc import Sequence

from aiovmm.config import CpusConfig
from aiovmm.errors import KvmError, SnapshotError
from aiovmm.kvm.aarch64.clock import GuestCounter
from aiovmm.kvm.aarch64.features import VcpuFeatures, reset
from aiovmm.kvm.aarch64.gic import Gic
from aiovmm.kvm.aarch64.gicstate import GicImage, read_gic
from aiovmm.kvm.aarch64.vcpuimage import VcpuImage, read_vcpu
from aiovmm.kvm.vcpu import Vcpu
from aiovmm.kvm.vmfd import VmFd
from aiovmm.machine.aarch64.processors import affinities
from aiovmm.machine.moment import Moment
from aiovmm.machine.restored import Restored
from aiovmm.native import lib
from aiovmm.runtime.dataclass import dataclass
from aiovmm.runtime.plain import Fields, State

__all__ = ["Processors", "save_processors"]

_FEATURES = {"pmu": "performance counters", "sve": "SVE", "pointer_authentication": "pointer authentication"}
_FASTEST = 1 << 32  # Hz


def save_processors(vcpus: Sequence[Vcpu], features: VcpuFeatures, gic: Gic, counter: GuestCounter) -> State:
    """Of all `vcpus`, which stand still. In a thread; part of it is written to the guest's memory. Raises KvmError."""
    stood = {} if counter.stood is None else {"counter_stood": counter.stood}
    return {
        **stood,
        "features": {name: getattr(features, name) for name in _FEATURES},
        "counter_hz": int(lib.avmm_counter_hz()),
        **Moment.now().save(),
        "vcpus": [read_vcpu(vcpu) for vcpu in vcpus],
        "gic": read_gic(gic, affinities(vcpus)),
    }


@dataclass(frozen=True, eq=False)
class Processors:
    """Those of one guest, checked, for any number of machines. `stood`: what its counter goes on from when it runs, if not from
    where it has come to by then."""

    features: VcpuFeatures
    moment: Moment
    counter_hz: int
    stood: int | None
    vcpus: tuple[VcpuImage, ...]
    gic: GicImage

    @classmethod
    def of(cls, restored: Restored, cpus: CpusConfig, here: VcpuFeatures) -> Processors:
        """What a machine goes on from, on a host that has the features `here`. Raises SnapshotError: for state that is none, and
        for what this host cannot do."""
        return restored.once("processors", lambda: cls._read(restored, cpus, here))

    @classmethod
    def _read(cls, restored: Restored, cpus: CpusConfig, here: VcpuFeatures) -> Processors:
        fields = Fields(restored.state, "machine").fields("board").fields("processors")
        had = fields.fields("features")
        features = VcpuFeatures(**{name: had.flag(name) for name in _FEATURES})
        had.end()
        moment, hz = Moment.read(fields), fields.number("counter_hz", 1, _FASTEST)
        stood = fields.number("counter_stood") if "counter_stood" in fields else None
        vcpus = tuple(VcpuImage.read(vcpu) for vcpu in fields.several("vcpus", cpus.boot))
        gic = GicImage.read(fields.fields("gic"), cpus.boot)
        fields.end()
        _check_host(features, here, hz)
        return cls(features, moment, hz, stood, vcpus, gic)

    def create(self, vm: VmFd) -> list[Vcpu]:
        """All vCPUs, in whose state nothing is yet. Raises SnapshotError, KvmError."""
        vcpus = [vm.create_vcpu(index) for index in range(len(self.vcpus))]
        try:
            reset(vm, vcpus, self.features, self.vcpus[0].vector_lengths)
        except KvmError as exc:
            raise SnapshotError(f"this host has no such processors: {exc}") from exc
        return vcpus

    def put(self, vcpus: Sequence[Vcpu], gic: Gic) -> None:
        """All of it, into vCPUs that `create` has made and their new interrupt controller; the guest's memory is there. In a
        thread. Raises SnapshotError, KvmError."""
        for vcpu, image in zip(vcpus, self.vcpus, strict=True):
            image.put(vcpu)
        self.gic.put(gic, affinities(vcpus))
        ticks = self.moment.passed_ns() * self.counter_hz // 1_000_000_000
        self.vcpus[0].put_counters(vcpus[0], ticks)


def _check_host(features: VcpuFeatures, here: VcpuFeatures, hz: int) -> None:
    lacking = [title for name, title in _FEATURES.items() if getattr(features, name) and not getattr(here, name)]
    if lacking:
        raise SnapshotError(f"this host cannot go on with it: it lacks {', '.join(lacking)}; restore it where they are")
    if hz != (found := int(lib.avmm_counter_hz())):
        raise SnapshotError(
            f"its clocks are made of a counter of {hz} Hz, and this host's has {found}: restore it on a host of the same kind"
        )
