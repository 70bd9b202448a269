"""The agent in guests with stock kernels: what a program that embeds a VM does in its guest."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest

from aiovmm import VM, AgentLost, BootTimeout, CommandTimeout, ExitReason, Pool, StateError, VMConfig, VsockConfig
from aiovmm.agent import agent_binary
from aiovmm.image import build_initramfs
from tests.system.conftest import GUESTS, RELEASES, Guests, OnDemand
from tests.system.guest import limit
from tests.system.programs import program

SIZE = 64 << 20
AS_INIT = """#!/bin/sh
export PATH=/bin:/sbin
mount -t proc proc /proc
modprobe -a virtio_pci vmw_vsock_virtio_transport
umount /proc
exec /sbin/aiovmm-agent
"""


def made(folder: Path, release: str, **options: object) -> Path:
    """An initramfs with the agent, and what measures a raw stream."""
    tool = program("vsock")
    files = {"/bin/vsock": tool} if tool is not None else {}
    modules = GUESTS / release / "modules"
    image = build_initramfs(busybox=GUESTS / "bin/busybox", modules=modules, files=files, **options)  # type: ignore[arg-type]
    path = folder / f"{release}.cpio"
    path.write_bytes(image.data)
    return path


@pytest.fixture(scope="module")
def with_agent(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return OnDemand(lambda release: made(tmp_path_factory.mktemp("agent"), release, agent=agent_binary()))


@pytest.fixture(scope="module")
def as_init(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return OnDemand(lambda release: made(tmp_path_factory.mktemp("init"), release, agent=agent_binary(), init=AS_INIT))


def configured(guests: Guests, initramfs: Path, release: str, **changes: object) -> VMConfig:
    config = guests.config(release, **{"vsock": VsockConfig(), "memory": 512, **changes})  # type: ignore[arg-type]
    return replace(config, payload=replace(config.payload, initramfs=initramfs))


async def commands(vm: VM) -> None:
    done = await asyncio.create_task(vm.run(["uname", "-s"], timeout=limit(60)))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"Linux\n", b"")
    with pytest.raises(CommandTimeout) as info:
        await vm.run(["sh", "-c", "echo so far; sleep 1000 & sleep 1000"], timeout=5)
    assert info.value.stdout == b"so far\n"
    assert b"sleep 1000" not in (await vm.run(["ps"])).stdout
    process = await vm.create_process("sh", "-c", "tty; stty size; read x; echo $x", pty=(100, 30))
    assert process.stdin is not None
    assert process.stdout is not None
    assert (await process.stdout.readline()).startswith(b"/dev/pts/")
    assert await process.stdout.readline() == b"30 100\r\n"
    process.stdin.write(b"typed\n")
    assert (await process.stdout.read()).endswith(b"typed\r\n")
    assert await process.wait() == 0


async def many(vm: VM) -> None:
    """50 at once; nothing of them is left."""
    gate = asyncio.Semaphore(50)
    times: list[float] = []

    async def one(number: int) -> bytes:
        async with gate:
            began = time.perf_counter()
            done = await vm.run(["echo", str(number)])
            times.append(time.perf_counter() - began)
            return done.stdout

    assert await asyncio.gather(*(one(n) for n in range(300))) == [b"%d\n" % n for n in range(300)]
    times.sort()
    print(f"50 at once: p50 {times[150] * 1e3:.0f} ms, p99 {times[296] * 1e3:.0f} ms")
    began = time.perf_counter()
    for _ in range(20):
        await vm.run(["true"])
    print(f"one after the other: {(time.perf_counter() - began) / 20 * 1e3:.1f} ms each")
    pid = (await vm.run(["pidof", "aiovmm-agent"])).stdout.decode().split()[-1]
    left = await vm.run(["sh", "-c", f"ls /proc/{pid}/fd | wc -l; cat /proc/{pid}/task/{pid}/children | wc -w"])
    assert int(left.stdout.split()[0]) < 20
    assert int(left.stdout.split()[1]) <= 2


async def throughput(vm: VM) -> None:
    """Beside a raw stream of the same size. What is asserted is that all of it comes."""
    if program("vsock") is not None:

        async def sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            size = 0
            while data := await reader.read(1 << 20):
                size += len(data)
            writer.write(b"%d 0" % size)
            writer.close()

        async with await vm.vsock.listen(2000, sink):
            said = (await vm.run(["vsock", "connect", "2", "2000", "source", str(SIZE)], check=True)).stdout.split()
        print(f"raw vsock stream: {SIZE / float(said[5]) / 2**20:.0f} MiB/s")
    began = time.perf_counter()
    done = await vm.run(["dd", "if=/dev/zero", "bs=64k", f"count={SIZE >> 16}"])
    print(f"stdout: {64 / (time.perf_counter() - began):.0f} MiB/s")
    assert len(done.stdout) == SIZE


async def copies(vm: VM, folder: Path) -> None:
    data = bytes(range(256)) * 4096 * 32
    (folder / "tree").mkdir()
    (folder / "tree/file").write_bytes(data)
    began = time.perf_counter()
    await vm.files.copy_in(folder / "tree", "/tmp/tree")
    print(f"in: {32 / (time.perf_counter() - began):.0f} MiB/s")
    await vm.run(["sh", "-c", "cd /tmp/tree; ln -s /etc/passwd out; ln -s file in; mknod null c 1 3; chmod 4755 file"])
    began = time.perf_counter()
    copied = await vm.files.copy_out("/tmp/tree", folder / "back")
    print(f"out: {32 / (time.perf_counter() - began):.0f} MiB/s")
    assert (folder / "back/file").read_bytes() == data
    assert {path for path, _ in copied.left_out} == {"out", "null"}
    assert (folder / "back/file").stat().st_mode & 0o7777 == 0o755
    await vm.files.write("/tmp/a", b"\xff", mode=0o600)
    assert await vm.files.read("/tmp/a") == b"\xff"
    assert (await vm.files.stat("/tmp/a")).mode & 0o777 == 0o600


async def ports(vm: VM) -> None:
    server = await vm.create_process("sh", "-c", "echo up; exec nc -l -p 8080 -e cat")
    assert server.stdout is not None
    assert await server.stdout.readline() == b"up\n"
    port = await vm.forward(8080)
    assert isinstance(port, int)
    await vm.run(
        ["sh", "-c", "until grep -q :1F90 /proc/net/tcp /proc/net/tcp6 2>/dev/null; do sleep 0.1; done"],
        timeout=limit(30),
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"to the guest and back")
    writer.write_eof()
    assert await reader.read() == b"to the guest and back"
    writer.close()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"from the host: " + await reader.readline())
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as host:
        await vm.forward(9090, host.sockets[0].getsockname()[1], back=True)
        assert (await vm.run(["nc", "127.0.0.1", "9090"], input=b"hello\n")).stdout == b"from the host: hello\n"


async def clock_and_entropy(vm: VM) -> None:
    await vm.agent.set_time(1_000_000_000)
    assert int((await vm.run(["date", "+%s"])).stdout) - 1_000_000_000 in range(60)
    await vm.agent.renew()
    assert abs(int((await vm.run(["date", "+%s"])).stdout) - time.time()) < 60
    await vm.pause()
    await vm.resume()
    assert abs(int((await vm.run(["date", "+%s"])).stdout) - time.time()) < 60


async def its_end(vm: VM) -> None:
    running = asyncio.create_task(vm.run(["sleep", "1000"]))
    await asyncio.sleep(0.1)
    await vm.kill("for the test")
    with pytest.raises(AgentLost, match="for the test") as info:
        await running
    assert info.value.status == vm.status
    with pytest.raises(AgentLost):
        await vm.run(["true"])


@pytest.mark.parametrize("release", RELEASES)
async def test_all_of_it_in_a_guest(guests: Guests, with_agent: dict[str, Path], release: str, tmp_path: Path) -> None:
    async with VM(configured(guests, with_agent[release], release)) as vm:
        await vm.start()
        assert not (await vm.agent.ready(timeout=limit(120))).is_init
        await commands(vm)
        await many(vm)
        await throughput(vm)
        await copies(vm, tmp_path)
        await ports(vm)
        await clock_and_entropy(vm)
        await its_end(vm)


@pytest.mark.parametrize("release", RELEASES)
async def test_the_same_in_a_pools_worker(
    guests: Guests, with_agent: dict[str, Path], release: str, tmp_path: Path
) -> None:
    """Which makes its guests confined to what they need."""
    made = Pool(configured(guests, with_agent[release], release), max=1, workers=1)
    async with made as pool, pool.acquire(timeout=limit(120)) as vm:
        await vm.agent.ready(timeout=limit(120))
        await commands(vm)
        await many(vm)
        await copies(vm, tmp_path)
        await ports(vm)
        await vm.snapshot(tmp_path / "there")
        assert (await vm.run(["echo", "again"], timeout=limit(60))).stdout == b"again\n"
        async for now in vm.stats(every=1.0):
            vsock = now.devices["vsock"].vsock
            assert vsock is not None
            assert vsock.rx_bytes > 1000
            break
        await its_end(vm)


@pytest.mark.parametrize("release", RELEASES)
async def test_as_the_guests_init(guests: Guests, as_init: dict[str, Path], release: str) -> None:
    async with VM(configured(guests, as_init[release], release)) as vm:
        await vm.start()
        assert (await vm.agent.ready(timeout=limit(120))).is_init
        script = "(sleep 0.1 &) ; cat /proc/1/comm; ls /dev/pts >/dev/null && echo mounted; ip addr show lo | grep -c 127.0.0.1"
        assert (await vm.run(["sh", "-c", script])).stdout == b"aiovmm-agent\nmounted\n1\n"
        await vm.run(["sleep", "1"])  # the orphan has ended meanwhile, and is nobody's
        dead = await vm.run(["sh", "-c", "cat /proc/[0-9]*/stat | grep -c ') Z ' || true"])
        assert dead.stdout == b"0\n"
        with pytest.raises(AgentLost) as info:  # its parent, process 1, begins it again
            await vm.run(["sh", "-c", "for p in $(pidof aiovmm-agent); do [ $p = 1 ] || kill -9 $p; done; sleep 60"])
        assert info.value.status is None
        assert (await vm.run(["echo", "again"])).stdout == b"again\n"
        status = await vm.stop(timeout=limit(60))
        assert status.reason is ExitReason.SHUTDOWN


@pytest.mark.parametrize("release", RELEASES)
async def test_what_became_of_a_guest_is_told(guests: Guests, with_agent: dict[str, Path], release: str) -> None:
    async with VM(configured(guests, with_agent[release], release)) as vm:
        await vm.start()
        await vm.agent.ready(timeout=limit(120))
        with pytest.raises(AgentLost) as info:
            await vm.run(["sh", "-c", "echo c >/proc/sysrq-trigger; sleep 60"], timeout=limit(60))
        assert info.value.status is not None
        assert info.value.status.reason is ExitReason.PANIC
        assert b"panic" in info.value.console_tail


async def test_a_guest_without_the_agent(guests: Guests) -> None:
    async with VM(guests.config("6.1", vsock=VsockConfig())) as vm:
        await vm.start()
        with pytest.raises(BootTimeout, match="vmw_vsock_virtio_transport") as info:
            await vm.agent.ready(timeout=0.1)
        assert info.value.stage == "driver"
        await vm.serial.expect(rb"guest:\S+ ?[#$] ", timeout=limit(120))
        with pytest.raises(BootTimeout) as info:
            await vm.agent.ready(timeout=2)
        assert info.value.stage == "agent"
        assert b"guest:" in info.value.console_tail
        await vm.kill()
        with pytest.raises(AgentLost):
            await vm.agent.ready(timeout=2)
    async with VM(guests.config("6.1")) as vm:
        with pytest.raises(StateError, match=r"vsock=VsockConfig\(\)"):
            await vm.run(["true"])
