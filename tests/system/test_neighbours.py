"""Many Linux guests in one process, with neighbours that flood it: what each reads is what was written, whoever else ends."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from aiovmm import (
    VM,
    AgentLost,
    ConsoleConfig,
    ConsoleMode,
    CpusConfig,
    DiskConfig,
    EventKind,
    MemoryConfig,
    NetConfig,
    PayloadConfig,
    VMConfig,
    VsockConfig,
)
from aiovmm.agent import agent_binary
from aiovmm.image import build_initramfs
from tests.guests import build_kernel
from tests.system.conftest import GUESTS, Guests, OnDemand
from tests.system.guest import prompt, shell
from tests.system.shown import CONSOLE
from tests.vm.remains import Remains

MIB = 1 << 20
ROUNDS = int(os.environ.get("AIOVMM_ROUNDS", "30"))
COUNT = 16
FLOODS = "wxxs"  # print, exits of the loop's, exits, compute: letters of tests/guests/kernel.S
COUNTER = 0x60000
BLOB = random.Random(7).randbytes(2 * MIB)
DISK = """
dd if=/dev/urandom of=/tmp/out bs=64k count=16 2>/dev/null && dd if=/tmp/out of=/dev/vda bs=64k conv=fsync 2>/dev/null
echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=64k count=16 2>/dev/null | cmp - /tmp/out && echo same
"""
DIGEST = hashlib.sha256(BLOB).hexdigest()

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module")
def with_agent(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    def make(release: str) -> Path:
        modules = GUESTS / release / "modules"
        image = build_initramfs(busybox=GUESTS / "bin/busybox", modules=modules, agent=agent_binary())
        path = tmp_path_factory.mktemp("agent") / f"{release}.cpio"
        path.write_bytes(image.data)
        return path

    return OnDemand(make)


class Neighbours:
    """Configurations of guests by number, each with all five devices."""

    def __init__(self, guests: Guests, initramfs: Path, folder: Path) -> None:
        self._guests = guests
        self._initramfs = initramfs
        self._folder = folder

    def config(self, number: int) -> VMConfig:
        disk = self._folder / f"disk{number}"
        disk.write_bytes(bytes(8 * MIB))
        config = self._guests.config(
            memory=128,
            cmdline=f"console={CONSOLE} console=hvc0 panic=-1 quiet",
            name=f"linux{number}",
            disks=(DiskConfig(path=disk),),
            nets=(NetConfig(ip=f"10.16.{number}.1", mask="255.255.255.0"),),
            vsock=VsockConfig(),
            console=ConsoleConfig(ConsoleMode.NULL, history=MIB),
        )  # and rng, which all have
        return replace(config, payload=replace(config.payload, initramfs=self._initramfs))


@asynccontextmanager
async def server() -> AsyncIterator[int]:
    """A port at which everybody gets the blob."""

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(BLOB)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "0.0.0.0", 0) as serving:
        yield serving.sockets[0].getsockname()[1]


def flood(does: str, number: int) -> VMConfig:
    payload = PayloadConfig(build_kernel(), None, does)
    return VMConfig(payload, CpusConfig(1), MemoryConfig(4 * MIB), rng=None, name=f"flood{number}")


def counted(vm: VM) -> int:
    return int.from_bytes(vm.machine.memory.read(COUNTER, 4), "little")


async def said(vm: VM, script: str) -> str:
    done = await vm.run(["sh", "-c", script], timeout=300)
    assert done.returncode == 0, (vm.name, script, done.stderr)
    return done.stdout.decode().strip()


async def once(vm: VM, number: int, port: int) -> None:
    """Something by each of its devices; what comes back is what there was."""
    assert await said(vm, DISK) == "same"
    assert (await said(vm, f"nc -w 60 10.16.{number}.1 {port} </dev/null | sha256sum")).split()[0] == DIGEST
    done = await vm.run(["sha256sum"], input=BLOB, timeout=300)
    assert done.stdout.split()[0].decode() == DIGEST
    assert (await said(vm, "head -c 64 /dev/hwrng | wc -c")) == "64"
    text = random.Random(number).randbytes(500).hex()
    assert (await shell(vm, f"echo {text}", timeout=300, console=vm.console)).strip() == text


class Tenant:
    """A guest that is busy for as long as it lives. `rounds` counts what it has done."""

    def __init__(self, number: int, neighbours: Neighbours, port: int) -> None:
        self.number = number
        self.rounds = 0
        self.vm: VM | None = None
        self.up = asyncio.Event()
        self.task = asyncio.create_task(self._live(neighbours, port), name=f"tenant {number}")

    async def _live(self, neighbours: Neighbours, port: int) -> None:
        async with VM(neighbours.config(self.number)) as vm:
            await self._be_busy(vm, port)
        async for event in vm.events(from_start=True):
            assert event.kind is not EventKind.DEVICE_ERROR, event

    async def _be_busy(self, vm: VM, port: int) -> None:
        """Until it is killed."""
        await vm.start()
        await vm.agent.ready(timeout=600)
        await prompt(vm, vm.console, timeout=600)
        address = f"10.16.{self.number}.2/24"
        await said(vm, f"ip address add {address} dev eth0; ip link set eth0 up")
        await once(vm, self.number, port)
        self.vm = vm
        self.up.set()
        try:
            while True:
                await once(vm, self.number, port)
                self.rounds += 1
        except AgentLost:
            if vm.status is None or vm.status.detail != "for the test":
                raise
        except EOFError:  # on its console
            assert (await vm.wait()).detail == "for the test"

    async def ready(self) -> None:
        """Up, or failed: then what it failed with."""
        up = asyncio.create_task(self.up.wait())
        await asyncio.wait([up, self.task], return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        if self.task.done():
            self.task.result()


async def advanced(tenants: dict[int, Tenant], floods: list[VM]) -> None:
    """All have done something again since now. A guest that fails is raised."""
    rounds = {tenant: tenant.rounds for tenant in tenants.values()}
    counts = {vm: counted(vm) for vm in floods}

    def still() -> list[str]:
        for tenant in rounds:
            if tenant.task.done():
                tenant.task.result()
                raise AssertionError(f"tenant {tenant.number} has ended")
        waiting = [f"tenant {tenant.number}" for tenant, before in rounds.items() if tenant.rounds == before]
        return waiting + [vm.name for vm, before in counts.items() if counted(vm) == before]

    await until_none(still)


async def until_none(still: Callable[[], list[str]]) -> None:
    try:
        async with asyncio.timeout(600):
            while still():  # noqa: ASYNC110 - guests tell nobody
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"nothing more of {still()}") from None


async def test_guests_under_load_outlive_those_that_are_killed(
    guests: Guests, with_agent: dict[str, Path], folder: Path
) -> None:
    """One at a time, at a random moment, and another takes its place."""
    chance = random.Random(11)
    neighbours = Neighbours(guests, with_agent["6.1"], folder)
    remains = await Remains.once_loop_has_streams()
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(server())
        floods = [await stack.enter_async_context(VM(flood(does, i))) for i, does in enumerate(FLOODS)]
        await asyncio.gather(*(vm.start() for vm in floods))
        tenants = {number: Tenant(number, neighbours, port) for number in range(COUNT)}
        try:
            await asyncio.gather(*(tenant.ready() for tenant in tenants.values()))
            for _ in range(ROUNDS):
                victim = tenants[chance.randrange(COUNT)]
                await asyncio.sleep(chance.random() * 2)
                assert victim.vm is not None
                await victim.vm.kill("for the test")
                await victim.task
                tenants[victim.number] = new = Tenant(victim.number, neighbours, port)
                await advanced({n: t for n, t in tenants.items() if t is not new}, floods)
                await new.ready()
            for tenant in tenants.values():
                assert tenant.vm is not None
                await tenant.vm.kill("for the test")
                await tenant.task
        finally:
            for tenant in tenants.values():
                tenant.task.cancel()
            await asyncio.wait([tenant.task for tenant in tenants.values()])
    await remains.check()
