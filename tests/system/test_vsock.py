"""Linux's AF_VSOCK against the program's streams and the hybrid unix socket."""

from __future__ import annotations

import asyncio
import re
import zlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from aiovmm import VM, EventKind, PayloadConfig, RebootPolicy, VMConfig, VsockConfig
from aiovmm.devices.virtio.vsock import VsockDevice
from aiovmm.image import build_initramfs
from examples import vsock_rpc
from tests.system.conftest import GUESTS, RELEASES, Guests
from tests.system.guest import BOOT, limit, prompt, reboot, shell
from tests.system.programs import program
from tests.system.traffic import sink

SIZE = 64 << 20
MODULE = "vmw_vsock_virtio_transport"
DRIVER = f"/sys/bus/virtio/drivers/{MODULE}"


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


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


async def to_guest(vm: VM) -> None:
    """64 MB to a guest that began to listen after we asked, and its answer after our half of the stream ended."""
    connecting = asyncio.create_task(vm.vsock.connect(1000, timeout=limit(60), wait=True))
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
    total, seen, seconds = (await asyncio.wait_for(reader.read(), limit(60))).split()
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
        streams += await asyncio.gather(*(vm.vsock.connect(1001, timeout=limit(60), wait=True) for _ in range(50)))
    for number, (_, writer) in enumerate(streams):
        writer.write(number.to_bytes(4, "big"))
        writer.write_eof()
    for number, (reader, writer) in enumerate(streams):
        assert await asyncio.wait_for(reader.read(), limit(60)) == number.to_bytes(4, "big")
        writer.close()


async def hybrid(vm: VM, path: Path) -> None:
    """Programs that know nothing of vsock: one that connects, ones that do not get far, one that is connected to."""
    for said in (b"", b"CONN", b"nonsense\n"):
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
        words = (await shell(vm, "vsock connect 2 2002 source 100000")).split()
    assert words[1] == words[3]
    assert "reset by peer" in await shell(vm, "vsock connect 2 4 echo 2>&1 || true")


async def reboot_with_connections(vm: VM, path: Path) -> None:
    """With connections open: of the program, of a host program at the unix socket, and one that the guest made."""
    arrived: asyncio.Future[asyncio.StreamReader] = asyncio.get_running_loop().create_future()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(1) == b"x"
        arrived.set_result(reader)
        await asyncio.Event().wait()

    reader, writer = await vm.vsock.connect(1001)
    client, client_writer = await asyncio.open_unix_connection(path)
    client_writer.write(b"CONNECT 1001\n")
    assert (await client.readline()).startswith(b"OK ")
    async with await vm.vsock.listen(2003, echo), await vm.vsock.listen(2004, hold):
        await shell(vm, "(vsock connect 2 2004 ping 10 >/dev/null 2>&1 &)")
        made = await asyncio.wait_for(arrived, limit(20))
        await reboot(vm, b"reboot")
        for end in (reader, client, made):
            with suppress(ConnectionResetError):
                assert await asyncio.wait_for(end.read(), limit(60)) == b""
        writer.close()
        client_writer.close()
        await vm.serial.expect(rb"aiovmm: init", timeout=BOOT)  # a prompt before it is the first life's
        await prompt(vm)
        device = vm.device("vsock")
        assert isinstance(device, VsockDevice)
        assert device.connections == 0
        await shell(vm, "(vsock listen 1001 echo >/dev/null 2>&1 &)")
        reader, writer = await vm.vsock.connect(1001, wait=True)
        writer.write(b"alive")
        assert await reader.readexactly(5) == b"alive"
        writer.close()
        assert (await shell(vm, "vsock connect 2 2003 ping 10")).endswith("us\n")


async def vanishing(vm: VM, path: Path) -> None:
    """A host program goes away at every step of its handshake and after it; what the guest's server sees of it ends, too."""
    device = vm.device("vsock")
    assert isinstance(device, VsockDevice)

    async def client(*said: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(path)
        for part in said:
            writer.write(part)
            await writer.drain()
        return reader, writer

    async def established() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await client(b"CONNECT 1001\n")
        assert (await reader.readline()).startswith(b"OK ")
        return reader, writer

    async def settled() -> None:
        async with asyncio.timeout(limit(30)):
            while device.connections:  # noqa: ASYNC110 - the guest's doing
                await asyncio.sleep(0.05)

    await settled()
    for said in (b"", b"C", b"CONNECT", b"CONNECT 1001", b"CONNECT 1001\n", b"CONNECT 1001\nwith data", b"CONNECT 4\n"):
        (await client(said))[1].transport.abort()
    await settled()

    await vm.pause()  # the guest has been asked, and cannot answer
    _, writer = await client(b"CONNECT 1001\n")
    async with asyncio.timeout(limit(20)):
        while not device.connections:  # noqa: ASYNC110 - the device's doing
            await asyncio.sleep(0.01)
    writer.transport.abort()
    await vm.resume()
    await settled()

    _, writer = await established()
    writer.transport.abort()
    _, writer = await established()
    writer.write_eof()
    writer.transport.abort()
    _, writer = await established()
    writer.write(bytes(1 << 20))  # an echo that nobody reads comes back
    writer.transport.abort()
    await settled()
    await shell(vm, "until [ $(pidof vsock | wc -w) = 2 ]; do sleep 0.1; done")  # the servers; of their children none
    reader, writer = await established()
    writer.write(b"alive")
    assert await reader.readexactly(5) == b"alive"
    writer.close()
    await settled()


async def reload_under_load(vm: VM, rounds: int) -> None:
    """The device is taken from the driver in mid-stream, and given back; then the idle driver's module goes and comes."""
    await shell(vm, f"d=$(basename $(ls -d {DRIVER}/virtio*))")
    for _ in range(rounds):
        flowing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def take(
            reader: asyncio.StreamReader,
            writer: asyncio.StreamWriter,
            flowing: asyncio.Future[None] = flowing,
            over: asyncio.Future[None] = over,
        ) -> None:
            with suppress(ConnectionResetError):
                while await reader.read(1 << 16):
                    if not flowing.done():
                        flowing.set_result(None)
            over.set_result(None)
            writer.close()

        async with await vm.vsock.listen(2005, take):
            await shell(vm, "(vsock connect 2 2005 flood 1000000000000 >/dev/null 2>&1 &)")
            await asyncio.wait_for(flowing, limit(30))
            await shell(vm, f"echo $d >{DRIVER}/unbind")
            await asyncio.wait_for(over, limit(30))
            await shell(vm, f"echo $d >{DRIVER}/bind")
        async with await vm.vsock.listen(2003, echo):
            assert (await shell(vm, "vsock connect 2 2003 ping 10")).endswith("us\n")
        await shell(vm, f"until rmmod {MODULE} 2>/dev/null; do sleep 0.1; done; modprobe {MODULE}", timeout=60)
        async with await vm.vsock.listen(2003, echo):
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
        await vanishing(vm, path)
        await reboot_with_connections(vm, path)
    assert not path.exists()


@pytest.mark.timeout(500)
@pytest.mark.parametrize("release", RELEASES)
async def test_the_driver_comes_and_goes_under_load(guests: Guests, initramfs: dict[str, Path], release: str) -> None:
    async with VM(configured(guests, initramfs, release, cid=7)) as vm:
        await vm.start()
        await prompt(vm)
        await shell(vm, "dmesg -c >/dev/null")
        await reload_under_load(vm, 20)
        assert not re.search(r"WARNING: CPU|BUG:|Oops", await shell(vm, "dmesg"))
        await vm.kill()
        assert EventKind.DEVICE_ERROR not in [event.kind async for event in vm.events(from_start=True)]


async def test_the_example_calls_both_ways(tmp_path: Path) -> None:
    initramfs = tmp_path / "agent.cpio"
    data = await asyncio.to_thread(vsock_rpc.image, GUESTS / "6.1/modules", GUESTS / "bin/busybox")
    await asyncio.to_thread(initramfs.write_bytes, data)
    answers = await vsock_rpc.main(GUESTS / "6.1/vmlinuz", initramfs)
    assert answers == [f"{n * n}\n" for n in range(10)] + ["FROM GUEST TO HOST\n"]
