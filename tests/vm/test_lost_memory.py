"""Memory of a guest whose backing goes away under it: that guest ends with the reason, nobody else notices."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiovmm import VM, ExitReason, PmemConfig, RngConfig
from aiovmm.devices.virtio.blk import BlkDevice, DiskImage, Status
from aiovmm.devices.virtio.blk.engine import IoKind
from aiovmm.devices.virtio.blk.protocol import Request
from aiovmm.devices.virtio.net import NetDevice
from aiovmm.devices.virtio.net.sockets import SocketBackend
from aiovmm.devices.virtio.rng import RngDevice
from aiovmm.devices.virtio.vsock.packet import HEADER_SIZE, HOST_CID, Header, Op
from aiovmm.kvm import Kvm
from aiovmm.kvm.exits import RunFailed
from aiovmm.machine.lost_memory import lost_memory
from aiovmm.machine.verdict import NO_BACKING
from aiovmm.memory import GuestMemory, MemoryRegion
from aiovmm.native import lib
from aiovmm.testing import Harness
from aiovmm.virtqueue.driver import NEXT, WRITE, Descriptor
from tests.devices.virtio.blk_driver import header, read
from tests.devices.virtio.net_guest import PLAIN, ready
from tests.devices.virtio.vsock.guest import CID, make_device
from tests.guests import CODE
from tests.guests.machine import Machine
from tests.tmpfs import tmpfs
from tests.vm import guest

SIZE = 2 << 20
FAR = 1 << 30  # where the tests' own guests and harness see the file


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB with a file of 2 MiB in it that is one hole; then the file system is full."""
    with tmpfs(tmp_path / "small", "64k") as place:
        with (place / "pmem").open("wb") as file:
            file.truncate(SIZE)
        with (place / "rest").open("wb", buffering=0) as rest, contextlib.suppress(OSError):
            while True:
                rest.write(bytes(4096))
        yield place / "pmem"


@pytest.fixture
def short(tmp_path: Path) -> Path:
    path = tmp_path / "pmem"
    path.write_bytes(bytes(SIZE))
    return path


@pytest.fixture
def kvm() -> Iterator[Kvm]:
    with Kvm.open() as kvm:
        yield kvm


def pmem(vm: VM) -> MemoryRegion:
    return vm.machine.memory.regions[-1]


@pytest.mark.parametrize("how", ["Python reads", "Python writes", "native code"])
async def test_only_the_guest_ends_whose_file_is_cut_short(how: str, short: Path) -> None:
    neighbour = VM(guest.config("x"))
    async with neighbour, VM(guest.config("x", pmems=(PmemConfig(file=short),))) as vm:
        await neighbour.start()
        await vm.start()
        await guest.counts_on(vm)
        memory, gpa = vm.machine.memory, pmem(vm).gpa
        os.truncate(short, 0)
        if how == "Python reads":
            assert memory.read(gpa, 4) == bytes(4)
        elif how == "Python writes":
            memory.write(gpa + 4096, b"x")
        else:
            lib.avmm_store16(pmem(vm).host + SIZE - 2, 1)
        status = await vm.wait()
        assert status.reason is ExitReason.ERROR
        assert f"guest memory at {gpa:#x}" in status.detail
        assert "cut short to 0 bytes" in status.detail
        assert status.error is not None
        await guest.counts_on(neighbour)


async def test_a_hole_that_a_full_file_system_cannot_fill(small: Path) -> None:
    async with VM(guest.config("x", pmems=(PmemConfig(file=small),))) as vm:
        await vm.start()
        vm.machine.memory.write(pmem(vm).gpa, b"x")
        status = await vm.wait()
        assert status.reason is ExitReason.ERROR
        assert "the file system is full" in status.detail


async def test_the_guest_itself_is_the_first_to_touch_it(kvm: Kvm, small: Path) -> None:
    """A hardware KVM fails KVM_RUN; one that emulates guest code hands the access out, to nobody."""
    async with Machine("forever", kvm=kvm) as m:
        with small.open("r+b") as file:
            m.memory.map_fd(FAR, SIZE, file.fileno())
            m.vm.set_memory(m.memory)
            # movabs rax, FAR; mov byte [rax], 1; 1: jmp 1b
            m.memory.write(CODE, b"\x48\xb8" + FAR.to_bytes(8, "little") + b"\xc6\x00\x01\xeb\xfe")
            m.start()
            await guest.until(lambda: bool(m.exits) or m.cpu.counters.missed > 0)
            if m.exits:
                assert m.exits == [(0, RunFailed(errno.EFAULT))]
            assert "the file system is full" in str(lost_memory(m.memory))


@pytest.mark.parametrize("code", NO_BACKING)
async def test_kvm_finds_no_memory_behind_an_address(code: int, short: Path) -> None:
    async with VM(guest.config("x", pmems=(PmemConfig(file=short),))) as vm:
        await vm.start()
        os.truncate(short, 0)
        vm.machine.exits._dispatch._on_exit(0, RunFailed(code))
        status = await vm.wait()
        assert status.reason is ExitReason.ERROR
        assert "cut short to 0 bytes" in status.detail


async def test_memory_that_was_lost_before_it_had_a_guest(kvm: Kvm, short: Path) -> None:
    lost = []
    async with Machine("forever", kvm=kvm) as m:
        m.loop._dispatch._on_memory_lost = lambda: lost.append(1)
        with short.open("r+b") as file:
            m.memory.map_fd(FAR, SIZE, file.fileno())
            os.truncate(short, 4096)
            assert m.memory.read(FAR + 8192, 1) == b"\0"
            m.vm.set_memory(m.memory)
            await guest.until(lambda: bool(lost))
            m.memory.read(FAR + 4096, 1)
            assert lost == [1]
            assert "cut short to 4096 bytes" in str(lost_memory(m.memory))


@pytest.mark.parametrize("io", [IoKind.URING, IoKind.THREADS])
async def test_a_disk_reads_into_a_hole_and_goes_on(io: IoKind, small: Path, tmp_path: Path) -> None:
    """The kernel finds nothing there and says EFAULT: an error of that request and of nothing else."""
    image = tmp_path / "disk"
    image.write_bytes(b"D" * 4096)
    device = BlkDevice(DiskImage.open(image), io=io)
    async with Harness(device) as h, Opened(h.memory, small) as region:
        queue, table = h.queues[0], h.arena.take(512)
        h.memory.write(table, header(Request.IN))
        h.memory.write(table + 16, b"\xff")
        chain = [
            Descriptor(table, 16, NEXT, 1),
            Descriptor(FAR, 512, NEXT | WRITE, 2),
            Descriptor(table + 16, 1, WRITE),
        ]
        queue.add_raw(chain)
        queue.kick()
        await queue.used()
        assert h.memory.read(table + 16, 1)[0] == Status.IOERR
        assert region.mapping.lost is None
        assert await read(h, 0, 512) == b"D" * 512


def network(socket_: bool) -> tuple[NetDevice, socket.socket]:
    """A device whose frames go through a socket, or are read and written as those of a TAP are, and the other end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    backend = SocketBackend(ours, vnet_hdr=True)
    backend.ports[0].rx.socket = backend.ports[0].tx.socket = socket_
    return NetDevice(backend), theirs


@pytest.mark.parametrize("socket_", [True, False], ids=["a socket", "a TAP"])
@pytest.mark.parametrize("receiving", [True, False], ids=["receives", "sends"])
async def test_a_network_device_whose_buffer_is_lost_has_not_lost_its_host(
    socket_: bool, receiving: bool, small: Path
) -> None:
    device, host = network(socket_)
    with host:
        async with Harness(device) as h, Opened(h.memory, small) as region:
            if receiving:
                await ready(device)
                h.queues[0].add_raw([Descriptor(FAR, 2000, WRITE)])
                host.send(PLAIN.pack() + bytes(60))
            else:
                at = h.arena.take(12)
                h.memory.write(at, PLAIN.pack())
                h.queues[1].add_raw([Descriptor(at, 12, NEXT, 1), Descriptor(FAR, 60)])
            h.queues[0 if receiving else 1].kick()
            await guest.until(lambda: region.mapping.lost is not None)
            assert device.backend.ports[0].ended is None
            assert h.reported == []


async def test_a_vsock_whose_buffers_are_lost_has_not_lost_its_host(small: Path) -> None:
    device = make_device()
    async with Harness(device) as h, Opened(h.memory, small) as region, await device.streams.listen(80) as server:
        rx, tx, at = h.queues[0], h.queues[1], h.arena.take(HEADER_SIZE)
        asks = Header(CID, HOST_CID, 5000, 80, op=Op.REQUEST, buf_alloc=65536)
        rx.add(writable=[HEADER_SIZE])
        tx.add([asks.pack()])
        tx.kick()
        reader, writer = await server.accept()
        await rx.used()
        rx.add_raw([Descriptor(at, HEADER_SIZE, NEXT | WRITE, 1), Descriptor(FAR, 64, WRITE)])
        writer.write(b"to the guest")
        await rx.used()
        assert h.memory.read(FAR, 12) == b"to the guest"
        assert region.mapping.lost == 0
        rx.add(writable=[HEADER_SIZE])  # what comes next is no end
        h.memory.unmap(region)
        with small.open("r+b") as file:
            region = h.memory.map_fd(FAR, SIZE, file.fileno())
        await tx.used()
        h.memory.write(at, asks._replace(op=Op.RW, length=64).pack())
        tx.add_raw([Descriptor(at, HEADER_SIZE, NEXT, 1), Descriptor(FAR, 64)])
        tx.kick()
        assert await reader.readexactly(64) == bytes(64)
        assert region.mapping.lost == 0
        writer.transport.abort()


async def test_entropy_for_a_buffer_that_is_lost(small: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    writer = os.open(tmp_path / "fifo", os.O_RDWR)
    for path in (Path("/dev/urandom"), tmp_path / "fifo"):
        os.write(writer, b"random")
        async with Harness(RngDevice.from_config(RngConfig(src=path))) as h, Opened(h.memory, small) as region:
            h.queues[0].add_raw([Descriptor(FAR, 64, WRITE)])
            h.queues[0].kick()
            await h.queues[0].used()
            assert region.mapping.lost == 0
            assert any(h.memory.read(FAR, 64))
    os.close(writer)


class Opened:
    """A file in a harness's memory at FAR."""

    def __init__(self, memory: GuestMemory, path: Path) -> None:
        self._memory = memory
        self._file = path.open("r+b")

    async def __aenter__(self) -> MemoryRegion:
        return self._memory.map_fd(FAR, SIZE, self._file.fileno())

    async def __aexit__(self, *exc: object) -> None:
        self._file.close()
