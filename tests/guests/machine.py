"""A minimal machine for bare-metal guests: RAM, one recording device behind ranges of every policy, vCPUs, an exit loop.

async with Machine("hello") as m:
    m.start()
    await m.until(lambda: b"E" in m.device.written)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Self

from aiovmm.bus import Bus, FastPage, Policy, Range, Space
from aiovmm.kvm import ExitLoop, FinalExit, Kvm, Vcpu
from aiovmm.kvm.x86_64 import cpuid
from aiovmm.kvm.x86_64.irqchip import set_identity_pages, split_irqchip
from aiovmm.kvm.x86_64.probe import long_mode
from aiovmm.kvm.x86_64.state import Regs
from aiovmm.kvm.x86_64.vcpustate import VcpuState
from aiovmm.memory import GuestMemory
from tests.guests import CODE, build
from tests.limits import HANGS

SYNC, POSTED, LATCH, NOTED, IGNORED, NOBODY, MMIO = 0x100, 0x200, 0x208, 0x210, 0x218, 0x300, 0xD000_0000
Answer = Callable[[int, int], bytes | Awaitable[bytes]]
GIB = 1 << 30
PAGE_TABLES = 0x1000  # PML4, PDPT and one page directory a GiB
MAPPED_GIB = 6
STACK = 0x80000
COUNTER = 0x60000


@dataclass(frozen=True)
class Access:
    """One access as the device saw it."""

    kind: str
    offset: int
    data: bytes


class Recorder:
    """Remembers accesses in order; answers reads with `answer(offset, size)`, and notes one that comes later without it."""

    def __init__(self, log: list[Access], name: str) -> None:
        self.log = log
        self.name = name
        self.answer: Answer = lambda offset, size: bytes(range(0x11, 0x11 + size))
        self.on_write: Callable[[int, bytes], Awaitable[None] | None] = lambda offset, data: None

    def read(self, offset: int, size: int) -> bytes | Awaitable[bytes]:
        data = self.answer(offset, size)
        self.log.append(Access(f"{self.name} read", offset, data if isinstance(data, bytes) else b""))
        return data

    def write(self, offset: int, data: bytes) -> Awaitable[None] | None:
        self.log.append(Access(f"{self.name} write", offset, data))
        return self.on_write(offset, data)


class Machine:
    """One VM with `cpus` vCPUs that runs guest `name` on the first; the others, with an irqchip, wait for SIPI."""

    def __init__(
        self,
        name: str,
        *,
        cpus: int = 1,
        irqchip: bool = True,
        ram: list[tuple[int, int]] | None = None,
        ring_size: int = 512,
        kvm: Kvm | None = None,
    ) -> None:
        self.log: list[Access] = []
        self.exits: list[tuple[int, FinalExit]] = []
        self.errors: list[tuple[Range, Exception]] = []
        self.eois: list[int] = []
        self.on_eoi: Callable[[int], None] = self.eois.append
        self.kvm = kvm or Kvm.open()
        self._own_kvm = kvm is None
        self.memory = GuestMemory.create(ram or [(0, 2 << 20)])
        self.vm = self.kvm.create_vm(cpus)
        set_identity_pages(self.vm)
        self.vm.set_memory(self.memory)
        if irqchip:
            split_irqchip(self.vm)
        self.bus = Bus()
        self._add_ranges()
        self.loop = ExitLoop(
            self.vm,
            self.bus,
            on_exit=lambda index, final: self.exits.append((index, final)),
            on_device_error=lambda rng, exc: self.errors.append((rng, exc)),
            on_eoi=lambda vector: self.on_eoi(vector),
        )
        self.memory.write(CODE, build(name))
        self._identity_map()
        supported = cpuid.get_supported(self.kvm.fd)
        self.cpus: list[Vcpu] = []
        for index in range(cpus):
            vcpu = self.vm.create_vcpu(index, ring_size=ring_size)
            VcpuState(vcpu).set_cpuid(supported)
            self.cpus.append(vcpu)
        self.state.set_sregs(long_mode(self.state.get_sregs(), PAGE_TABLES))
        self.state.set_regs(Regs(rip=CODE, rsp=STACK))

    @property
    def state(self) -> VcpuState:
        """Its registers."""
        return VcpuState(self.cpu)

    @property
    def cpu(self) -> Vcpu:
        """The boot processor."""
        return self.cpus[0]

    def _add_ranges(self) -> None:
        self.device = Recorder(self.log, "sync")
        self.posted = Recorder(self.log, "posted")
        self.fast = FastPage(0x28)
        fast, policy = self.fast, Policy
        fast.policy[0:8] = bytes([policy.POSTED_WRITE] * 8)
        fast.policy[8:16] = bytes([policy.POSTED_WRITE | policy.LATCH_WRITE | policy.SHADOW_READ] * 8)
        fast.policy[16:24] = bytes([policy.SHADOW_READ | policy.NOTE_READ] * 8)
        fast.policy[24:32] = bytes([policy.IGNORE_WRITE | policy.SHADOW_READ] * 8)
        fast.policy[0x20] = policy.POSTED_DWORD
        fast.policy[0x24:0x26] = bytes([policy.SHADOW_READ | policy.DROP_SAME] * 2)
        self.sync_range = self.bus.add(Range(Space.PIO, SYNC, 0x20, self.device, "sync"))
        self.posted_range = self.bus.add(Range(Space.PIO, POSTED, 0x28, self.posted, "posted", fast))
        self.mmio = Recorder(self.log, "mmio")
        self.bus.add(Range(Space.MMIO, MMIO, 0x1000, self.mmio, "mmio"))

    def _identity_map(self) -> None:
        """2 MiB pages for the first MAPPED_GIB GiB."""
        pdpt = PAGE_TABLES + 0x1000
        self.memory.write(PAGE_TABLES, (pdpt | 3).to_bytes(8, "little"))
        for gib in range(MAPPED_GIB):
            pd = pdpt + 0x1000 * (1 + gib)
            self.memory.write(pdpt + 8 * gib, (pd | 3).to_bytes(8, "little"))
            entries = (gib * GIB + i * (2 << 20) | 0x83 for i in range(512))
            self.memory.write(pd, b"".join(e.to_bytes(8, "little") for e in entries))

    def word(self, address: int) -> int:
        """The 32-bit word at a guest-physical address."""
        return int.from_bytes(self.memory.read(address, 4), "little")

    @property
    def written(self) -> bytes:
        """All bytes written to the recording devices, in order."""
        return b"".join(a.data for a in self.log if a.kind.endswith("write"))

    def start(self) -> None:
        """Start every vCPU."""
        for vcpu in self.cpus:
            vcpu.start()

    async def until(self, condition: Callable[[], bool], timeout: float = HANGS) -> None:
        """Wait until the guest has brought about `condition`."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"log {self.log[-20:]}, exits {self.exits}, errors {self.errors}")
            await asyncio.sleep(0.0005)

    @property
    def counter(self) -> int:
        """What the guest has counted in its COUNTER."""
        return self.word(COUNTER)

    async def counted(self, value: int) -> None:
        """Wait until the guest's counter is `value`."""
        await self.until(lambda: self.counter == value)

    async def counts_on(self, by: int = 1) -> None:
        """Wait until the guest has counted at least `by` more."""
        seen = self.counter
        await self.until(lambda: (self.counter - seen) % (1 << 32) >= by)

    async def ended(self, timeout: float = HANGS) -> FinalExit:
        """Wait until the boot processor ends, and say why."""
        return await asyncio.wait_for(self.cpu.join(), timeout)

    async def __aenter__(self) -> Self:
        self.loop.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop, join and close everything."""
        for vcpu in self.cpus:
            vcpu.stop()
        await self.loop.close()
        self.vm.close()
        self.memory.close()
        if self._own_kvm:
            self.kvm.close()
