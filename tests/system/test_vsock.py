"""Linux's AF_VSOCK against the program's streams and the hybrid unix socket."""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from aiovmm import VM, EventKind, PayloadConfig, RebootPolicy, VMConfig, VsockConfig
from aiovmm.image import build_initramfs
from examples import vsock_rpc
from tests.system.conftest import GUESTS, RELEASES, Guests
from tests.system.guest import BOOT, prompt, shell
from tests.system.programs import program

SIZE = 64 << 20


@pytest.fixture(scope="module")
def initramfs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    tool = program("vsock")
    if tool is None:
        pytest.skip(
            "no guest program: it is compiled where the tests start, by gcc with libc6-dev, which is missing there"
        )
    found = {}
    for release in RELEASES:
        path = tmp_path_factory.mktemp("initramfs") / f"{release}.cpio"
        image = build_initramfs(
            busybox=GUESTS / "bin/busybox", modules=GUESTS / release / "modules", files={"/bin/vsock": tool}
        )
        path.write_bytes(image.data)
        found[release] = path
    return found


def configured(guests: Guests, initramfs: dict[str, Path], release: str, **vsock: object) -> VMConfig:
    config = guests.config(release, cpus=2, memory=512, vsock=VsockConfig(**vsock), on_reboot=RebootPolicy.RESTART)  # type: ignore[arg-type]
    payload = PayloadConfig(config.payload.kernel, initramfs[release], config.payload.cmdline)
    return replace(config, payload=payload)


async def sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    total = crc = 0
    while data := await reader.read(1 << 20):
        crc = zlib.crc32(data, crc)
        total += len(data)
    writer.write(b"%d %08x" % (total, crc))
    writer.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


async def to_guest(vm: VM) -> None:
    """64 MB to a guest that began to listen after we asked, and its answer after our half of the stream ended."""
    connecting = asyncio.create_task(vm.vsock.connect(1000, timeout=60, wait=True))
    await asyncio.sleep(0.1)
    assert not connecting.done()
    await shell(vm, "(vsock listen 1000 sink >/dev/null 2>/tmp/errors &)")
    reader, writer = await connecting
    block = bytes(range(256)) * 4096
    crc = 0
    for number in range(SIZE // len(block)):
        data = number.to_bytes(4, "little") + block[4:]
        crc = zlib.crc32(data, crc)
        writer.write(data)
        await writer.drain()
    writer.write_eof()
    total, seen, seconds = (await asyncio.wait_for(reader.read(), 60)).split()
    assert (int(total), int(seen, 16)) == (SIZE, crc)
    print(f"host to guest: {SIZE / float(seconds) / 1e6:.0f} MB/s")
    writer.close()
    await writer.wait_closed()


async def from_guest(vm: VM) -> None:
    async with await vm.vsock.listen(2000, sink):
        said = (await shell(vm, f"vsock connect 2 2000 source {SIZE}", timeout=120)).split()
    assert int(said[0]) == int(said[2]) == SIZE
    assert said[1] == said[3]
    print(f"guest to host: {SIZE / float(said[5]) / 1e6:.0f} MB/s")


async def many(vm: VM) -> None:
    """500 each way."""
    async with await vm.vsock.listen(2001, echo):
        assert await shell(vm, "vsock many 2 2001 500", timeout=120) == "500 connections\n"
    await shell(vm, "(vsock listen 1001 echo >/dev/null 2>>/tmp/errors &)")
    streams = []
    for _ in range(10):
        streams += await asyncio.gather(*(vm.vsock.connect(1001, timeout=60, wait=True) for _ in range(50)))
    for number, (_, writer) in enumerate(streams):
        writer.write(number.to_bytes(4, "big"))
        writer.write_eof()
    for number, (reader, writer) in enumerate(streams):
        assert await asyncio.wait_for(reader.read(), 60) == number.to_bytes(4, "big")
        writer.close()


async def hybrid(vm: VM, path: Path) -> None:
    """Programs that know nothing of vsock: one that connects, ones that vanish on the way, one that is connected to."""
    for said in (b"", b"CONN", b"CONNECT 1001\n", b"CONNECT 4\n", b"nonsense\n"):
        _, writer = await asyncio.open_unix_connection(path)
        writer.write(said)
        writer.close()
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"CONNECT 1001\nand more")
    writer.write_eof()
    assert (await reader.readline()).startswith(b"OK ")
    assert await reader.read() == b"and more"
    writer.close()
    refused, writer = await asyncio.open_unix_connection(path)
    writer.write(b"CONNECT 4\n")
    assert await refused.read() == b""
    writer.close()
    async with await asyncio.start_unix_server(sink, f"{path}_2002"):
        said = (await shell(vm, "vsock connect 2 2002 source 100000")).split()
    assert said[1] == said[3]
    assert "reset by peer" in await shell(vm, "vsock connect 2 4 echo 2>&1 || true")


async def reboot(vm: VM) -> None:
    events = vm.events()
    reader, writer = await vm.vsock.connect(1001)
    async with await vm.vsock.listen(2003, echo):
        vm.serial.write(b"reboot\n")
        async for event in events:
            if event.kind is EventKind.REBOOTED:
                break
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 60)
        writer.close()
        await vm.serial.expect(rb"aiovmm: init", timeout=BOOT)  # a prompt before it is the first life's
        await prompt(vm)
        await shell(vm, "(vsock listen 1001 echo >/dev/null 2>&1 &)")
        reader, writer = await vm.vsock.connect(1001, wait=True)
        writer.write(b"alive")
        assert await reader.readexactly(5) == b"alive"
        writer.close()
        assert (await shell(vm, "vsock connect 2 2003 ping 10")).endswith("us\n")


@pytest.mark.parametrize("release", RELEASES)
async def test_linux_speaks_vsock(guests: Guests, initramfs: dict[str, Path], release: str, tmp_path: Path) -> None:
    path = tmp_path / "vsock"
    async with VM(configured(guests, initramfs, release, cid=7, socket=path)) as vm:
        await vm.start()
        await prompt(vm)
        await to_guest(vm)
        await from_guest(vm)
        await many(vm)
        await hybrid(vm, path)
        assert (await shell(vm, "cat /tmp/errors")) == ""
        async with await vm.vsock.listen(2003, echo):
            print("round trip:", await shell(vm, "vsock connect 2 2003 ping 1000"))
        await shell(vm, "modprobe -r vmw_vsock_virtio_transport || true; modprobe vmw_vsock_virtio_transport")
        await reboot(vm)
    assert not path.exists()


async def test_the_example_calls_both_ways(tmp_path: Path) -> None:
    initramfs = tmp_path / "agent.cpio"
    data = await asyncio.to_thread(vsock_rpc.image, GUESTS / "6.1/modules", GUESTS / "bin/busybox")
    await asyncio.to_thread(initramfs.write_bytes, data)
    answers = await vsock_rpc.main(GUESTS / "6.1/vmlinuz", initramfs)
    assert answers == [f"{n * n}\n" for n in range(10)] + ["FROM GUEST TO HOST\n"]
