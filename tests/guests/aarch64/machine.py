"""A minimal machine for bare-metal arm64 guests: RAM, a device whose every access waits, vCPUs, interrupt controller, exit loop.

async with ArmMachine(program(...)) as m:
    m.start()
    await m.ended()
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self

from aiovmm.boot.aarch64 import gic_of
from aiovmm.boot.aarch64.layout import PMU_PPI
from aiovmm.bus import Bus, Range, Space
from aiovmm.kvm import ExitLoop, FinalExit, Kvm, Vcpu
from aiovmm.kvm.aarch64 import pmu
from aiovmm.kvm.aarch64.features import VcpuFeatures, reset
from aiovmm.kvm.aarch64.gic import Gic
from aiovmm.kvm.aarch64.host import CAP_NISV_TO_USER
from aiovmm.kvm.aarch64.registers import PC, PSTATE, Registers
from aiovmm.memory import GuestMemory

RAM, DEVICE, CODE = 0x4000_0000, 0x0A00_0000, 0x4001_0000
SIZE = 2 << 20
EL1H_MASKED = 0x3C5


class Recorder:
    """Remembers accesses in order; a read is answered by the offset of each byte."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int, bytes]] = []

    def read(self, offset: int, size: int) -> bytes:
        """See bus.BusDevice."""
        data = bytes((offset + i) & 0xFF for i in range(size))
        self.log.append(("read", offset, data))
        return data

    def write(self, offset: int, data: bytes) -> None:
        """See bus.BusDevice."""
        self.log.append(("write", offset, data))

    @property
    def written(self) -> dict[int, int]:
        """The value that was written last to each offset."""
        return {offset: int.from_bytes(data, "little") for kind, offset, data in self.log if kind == "write"}


class ArmMachine:
    """One VM; vCPU 0 begins with `code`, at CODE, the others when it starts them."""

    def __init__(self, code: bytes, *, cpus: int = 1) -> None:
        self.exits: list[tuple[int, FinalExit]] = []
        self.errors: list[tuple[str, Exception]] = []
        self.device = Recorder()
        self.kvm = Kvm.open()
        self.memory = GuestMemory.create([(RAM, SIZE)])
        self.vm = self.kvm.create_vm(cpus)
        self.vm.set_memory(self.memory)
        self.vm.enable(CAP_NISV_TO_USER, 0, "accesses without syndrome")
        self.cpus: list[Vcpu] = [self.vm.create_vcpu(index) for index in range(cpus)]
        self.features = VcpuFeatures.of(self.kvm.fd)
        reset(self.vm, self.cpus, self.features)
        where = gic_of(cpus)
        self.gic = Gic(self.vm, distributor=where.distributor, redistributors=where.redistributors, its=where.its)
        if self.features.pmu:
            pmu.set_up(self.cpus, PMU_PPI)
        self.bus = Bus()
        self.bus.add(Range(Space.MMIO, DEVICE, 0x1000, self.device, "device"))
        self.loop = ExitLoop(
            self.vm,
            self.bus,
            on_exit=lambda index, final: self.exits.append((index, final)),
            on_device_error=lambda rng, exc: self.errors.append((rng.name, exc)),
        )
        self.memory.write(CODE, code)
        self.enter()

    def enter(self) -> None:
        """vCPU 0 is to begin."""
        registers = Registers(self.cpus[0])
        registers.set(PSTATE, EL1H_MASKED)
        registers.set(PC, CODE)

    def start(self) -> None:
        """Let all of them run."""
        for vcpu in reversed(self.cpus):
            vcpu.start()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for it."""
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110 - any condition
                await asyncio.sleep(0.01)

    async def ended(self) -> FinalExit:
        """How the first vCPU ends that does by itself; all are stopped then."""
        await self.until(lambda: bool(self.exits))
        for vcpu in self.cpus:
            vcpu.stop()
            await vcpu.join()
        return self.exits[0][1]

    async def __aenter__(self) -> Self:
        self.loop.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.loop.close()
        self.gic.close()
        self.vm.close()
        self.memory.close()
        self.kvm.close()
