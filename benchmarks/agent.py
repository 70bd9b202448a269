"""Commands and files in a guest by the agent, beside a raw vsock stream of the same program's. Boots a stock kernel."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import uvloop

from aiovmm import VM, CpusConfig, MemoryConfig, PayloadConfig, VMConfig, VsockConfig
from aiovmm.agent import agent_binary
from aiovmm.image import build_initramfs
from benchmarks.agent_rows import SERVER, P, rows
from benchmarks.guest import CMDLINE
from benchmarks.harness import Options, Result, Target
from benchmarks.place import GUESTS
from benchmarks.programs import program

NESTED = True
PORT = 5000
BOOT = 120.0  # seconds


class _Guest:
    """See agent_rows.Place."""

    def __init__(self, vm: VM) -> None:
        self.agent = vm.agent
        self._vm = vm

    @classmethod
    async def started(cls, what: VMConfig) -> _Guest:
        """Once its agent and the server are there."""
        vm = await VM(what, terminal=False).__aenter__()
        try:
            await vm.start()
            await vm.agent.ready(BOOT)
            await vm.create_process(*SERVER.split(), f"vsock:-1:{PORT}", stdout=None, stderr=None, stdin=None)
            _, writer = await vm.vsock.connect(PORT, timeout=BOOT, wait=True)
            writer.close()
        except BaseException:
            await vm.aclose()
            raise
        return cls(vm)

    async def aclose(self) -> None:
        """End it."""
        await self._vm.aclose()

    async def connect(self, factory: Callable[[], P]) -> P:
        """See agent_rows.Place."""
        return await self._vm.vsock.attach(PORT, factory)

    async def descriptors(self) -> int:
        """See agent_rows.Place."""
        script = "p=$(pidof aiovmm-agent); p=${p##* }; ls /proc/$p/fd | wc -l; wc -w < /proc/$p/task/$p/children"
        done = await self._vm.run(["sh", "-c", script], check=True)
        return sum(int(word) for word in done.stdout.split())


def run(options: Options) -> Iterator[Result]:
    """All rows."""
    with tempfile.TemporaryDirectory() as name, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        guest = runner.run(_Guest.started(config(Path(name), options.release)))
        try:
            yield from rows(runner, guest, options, Target(0.5, most=False), Target(5.0))
        finally:
            runner.run(guest.aclose())


def config(folder: Path, release: str) -> VMConfig:
    """A guest with the agent and the server."""
    path = folder / "initramfs.cpio"
    busybox, modules = GUESTS / "bin/busybox", GUESTS / release / "modules"
    files = {"/bin/traffic": program("traffic")}
    path.write_bytes(build_initramfs(busybox=busybox, modules=modules, files=files, agent=agent_binary()).data)
    payload = PayloadConfig(GUESTS / release / "vmlinuz", path, CMDLINE)
    return VMConfig(payload, cpus=CpusConfig(1), memory=MemoryConfig(512 << 20), vsock=VsockConfig())
