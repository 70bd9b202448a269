"""A booted guest with 256 MiB: its snapshot, and how soon one that goes on from it, or is forked, answers over vsock, against its
own boot. Boots a stock kernel.

All happens in one process, which has made a guest before. `stages` of a row are seconds since its beginning.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import uvloop

from aiovmm import (
    VM,
    ConsoleConfig,
    CpusConfig,
    DiskConfig,
    MemoryConfig,
    PayloadConfig,
    RngConfig,
    VMConfig,
    VsockConfig,
)
from aiovmm.agent import agent_binary
from aiovmm.image import build_initramfs
from benchmarks.guest import CMDLINE
from benchmarks.harness import Options, Result, Target
from benchmarks.place import GUESTS

NESTED = True
MIB = 256
BOOT = 120.0  # seconds


def run(options: Options) -> Iterator[Result]:
    """All rows."""
    with tempfile.TemporaryDirectory() as name:
        yield from uvloop.run(rows(Path(name), options))


async def rows(folder: Path, options: Options) -> list[Result]:
    """All rows, of one guest."""
    written = Result("snapshot, 256 MiB", "s", "aiovmm", (), Target(plus=1.0))
    restored = Result("restored until it answers", "s", "aiovmm", ("boot",), Target(0.04))
    forked = Result("forked until it answers", "s", "aiovmm", ("boot",), Target(0.02))
    async with VM(config(folder, options.release)) as vm:
        began = time.monotonic()
        await vm.start()
        await vm.agent.ready(BOOT)
        boot = time.monotonic() - began
        for _ in range(options.rounds + 1):
            began = time.monotonic()
            snapshot = await vm.snapshot(folder / "snapshot")
            written.add("aiovmm", time.monotonic() - began)
        written.notes["written"] = f"{snapshot.pages} pages; the guest stood still for {snapshot.standstill:.3f} s"
        await vm.kill()
    for row in (restored, forked):
        row.add("boot", boot)
    for number in range(options.rounds):
        await answers(VM.restore(folder / "snapshot", name=f"again-{number}"), restored)
    async with VM.restore(folder / "snapshot", name="frozen") as vm:
        await vm.resume()
        await vm.agent.ready(BOOT)
        template = await vm.freeze()
    async with template:
        for number in range(options.rounds):
            await answers(template.fork(f"fork-{number}"), forked)
    return [written, restored, forked]


async def answers(guest: AbstractAsyncContextManager[VM], row: Result) -> None:
    """Add the seconds until `guest` answers to `row`."""
    began = time.monotonic()
    async with guest as vm:
        there = time.monotonic() - began
        await vm.resume()
        resumed = time.monotonic() - began
        await vm.agent.ready(BOOT)
        took = time.monotonic() - began
        row.add("aiovmm", took)
        row.notes["stages"] = f"paused {there:.3f}, runs {resumed:.3f}, answers {took:.3f}"
        await vm.kill()


def config(folder: Path, release: str) -> VMConfig:
    """A guest with the agent, and a device of each kind that needs nothing of the host."""
    (folder / "disk").write_bytes(bytes(1 << 20))
    path = folder / "initramfs.cpio"
    busybox, modules = GUESTS / "bin/busybox", GUESTS / release / "modules"
    path.write_bytes(build_initramfs(busybox=busybox, modules=modules, agent=agent_binary()).data)
    return VMConfig(
        PayloadConfig(GUESTS / release / "vmlinuz", path, CMDLINE),
        cpus=CpusConfig(1),
        memory=MemoryConfig(MIB << 20),
        console=ConsoleConfig(),
        rng=RngConfig(),
        vsock=VsockConfig(),
        disks=(DiskConfig(path=folder / "disk", direct=False),),
    )
