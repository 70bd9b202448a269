"""The requests that `device_cost` times: for each device, how a driver offers `depth` of them and what sets them off.

A load is an async context manager around a live device. It gives a function that prepares a shot and returns the queue on which
`depth` chains will come back, and what is to be called first: the time runs from there.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

from aiovmm.devices.virtio.blk import BlkDevice, DiskImage
from aiovmm.devices.virtio.blk.overlay.base import Base
from aiovmm.devices.virtio.blk.overlay.image import OverlayImage
from aiovmm.devices.virtio.console import ConsoleDevice
from aiovmm.devices.virtio.net import NetDevice, TapBackend
from aiovmm.devices.virtio.rng import RngDevice, open_source
from aiovmm.devices.virtio.vsock import VsockDevice
from aiovmm.devices.virtio.vsock.packet import HEADER_SIZE, HOST_CID, Header, Op
from aiovmm.native import lib
from aiovmm.testing import Harness
from aiovmm.virtqueue.driver import DriverQueue

__all__ = ["LOADS", "Load"]

Shot = Callable[[int], Awaitable[tuple[DriverQueue, Callable[[], object]]]]
Load = Callable[[Path], AbstractAsyncContextManager[Shot]]

IMAGE = 16 << 20
FRAME = b"\xff" * 6 + b"\x2e\0\0\0\0\1" + b"\x88\xb5" + bytes(46)  # to all, of IEEE's experimental EtherType; 60 bytes
CID, PORT, PAYLOAD = 3, 7000, 1024
LINE = 64


async def rest() -> None:
    """The device does what it has to do, and will not look at its rings before it is kicked. Not a sleep: caches stay warm."""
    for _ in range(20):
        await asyncio.sleep(0)


def raw(folder: Path) -> DiskImage:
    image = folder / "image"
    image.write_bytes(os.urandom(IMAGE))
    return DiskImage.open(str(image))


def overlay(folder: Path) -> DiskImage:
    """Two layers over a raw image, of which each has some clusters in pieces of four."""
    base = Base(raw(folder))
    for layer in range(2):
        image = OverlayImage.temporary(base, folder)
        base.release()
        for at in range(layer * 16384, IMAGE, 4 * 16384):
            lib.avmm_blk_layer_mark(image.top_layer.native, at, at + 16384)
        os.pwrite(image.fd, os.urandom(IMAGE), 0)
        base = Base(image)
    return image


@asynccontextmanager
async def blk_read(folder: Path, make: Callable[[Path], DiskImage] = raw) -> AsyncIterator[Shot]:
    """4 KiB each, from the page cache."""
    async with Harness(BlkDevice(make(folder), queue_size=512)) as h:
        queue, at = h.queues[0], 0

        async def shot(depth: int) -> tuple[DriverQueue, Callable[[], object]]:
            nonlocal at
            for _ in range(depth):
                queue.add([struct.pack("<IIQ", 0, 0, at)], [4096, 1])
                at = (at + 8) % (IMAGE // 512)
            return queue, queue.kick

        yield shot


@asynccontextmanager
async def rng_read(folder: Path) -> AsyncIterator[Shot]:
    """64 bytes each, of the host's urandom."""
    async with Harness(RngDevice(lambda: open_source(Path("/dev/urandom")))) as h:
        queue = h.queues[0]

        async def shot(depth: int) -> tuple[DriverQueue, Callable[[], object]]:
            for _ in range(depth):
                queue.add([], [64])
            return queue, queue.kick

        yield shot


@asynccontextmanager
async def net(folder: Path) -> AsyncIterator[tuple[Harness, socket.socket]]:
    """A device on a TAP, and a raw socket at the TAP's other end."""
    async with Harness(NetDevice(TapBackend(), mac=b"\x2e\0\0\0\0\1")) as h:
        await asyncio.sleep(0.05)  # the kernel lets the link come up
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as host:
            host.bind(("aiovmm0", 0))
            yield h, host


@asynccontextmanager
async def net_send(folder: Path) -> AsyncIterator[Shot]:
    """Frames of 60 bytes, which the host's network stack takes and drops."""
    async with net(folder) as (h, _):
        queue = h.queues[1]

        async def shot(depth: int) -> tuple[DriverQueue, Callable[[], object]]:
            for _ in range(depth):
                queue.add([bytes(12) + FRAME])
            return queue, queue.kick

        yield shot


@asynccontextmanager
async def net_receive(folder: Path) -> AsyncIterator[Shot]:
    """Frames of 60 bytes that wait in the TAP."""
    async with net(folder) as (h, host):
        queue = h.queues[0]

        async def shot(depth: int) -> tuple[DriverQueue, Callable[[], object]]:
            while queue.free:
                queue.add([], [1526])
            queue.kick()
            await asyncio.sleep(0)
            for _ in range(depth):
                host.send(FRAME)
            return queue, lambda: None

        yield shot


@asynccontextmanager
async def vsock(folder: Path) -> AsyncIterator[tuple[Harness, socket.socket]]:
    """A device with a connection from the guest's port to a program's socket."""
    path = folder / "vsock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{path}_{PORT}")
        listener.listen()
        try:
            async with Harness(VsockDevice(CID, path, buffer=1 << 20)) as h:
                h.queues[0].add([], [HEADER_SIZE, PAYLOAD])
                h.queues[0].kick()
                h.queues[1].add([packet(Op.REQUEST)])
                h.queues[1].kick()
                (answer,) = await h.queues[0].used()
                assert Header.parse(answer.data).op == Op.RESPONSE
                host, _ = listener.accept()
                with host:
                    yield h, host
        finally:
            os.unlink(f"{path}_{PORT}")


def packet(op: Op, length: int = 0) -> bytes:
    """A header of the guest's, which has all the room in the world."""
    return Header(CID, HOST_CID, PORT, PORT, length, op=op, buf_alloc=1 << 31).pack()


@asynccontextmanager
async def vsock_send(folder: Path) -> AsyncIterator[Shot]:
    """Packets of 1 KiB of payload from the guest."""
    async with vsock(folder) as (h, host):
        rx, tx = h.queues[0], h.queues[1]

        async def shot(depth: int) -> tuple[DriverQueue, Callable[[], object]]:
            tx.poll()
            rx.poll()
            host.setblocking(False)
            while room_left(host):
                pass
            while len(rx.free) >= 2:  # for updates of our credit
                rx.add([], [HEADER_SIZE, PAYLOAD])
            rx.kick()
            await rest()
            for _ in range(depth):
                tx.add([packet(Op.RW, PAYLOAD), bytes(PAYLOAD)])
            return tx, tx.kick

        yield shot


def room_left(host: socket.socket) -> bool:
    """Read what is there; whether there was anything."""
    try:
        return bool(host.recv(1 << 20))
    except BlockingIOError:
        return False


@asynccontextmanager
async def vsock_receive(folder: Path) -> AsyncIterator[Shot]:
    """Packets of 1 KiB of payload to the guest, which wait in the program's socket."""
    async with vsock(folder) as (h, host):
        rx = h.queues[0]

        async def shot(depth: int) -> tuple[DriverQueue, Callable[[], object]]:
            rx.poll()
            while len(rx.free) >= 2:
                rx.add([], [HEADER_SIZE, PAYLOAD])
            rx.kick()
            await asyncio.sleep(0)
            host.sendall(bytes(PAYLOAD * depth))
            return rx, lambda: None

        yield shot


@asynccontextmanager
async def console_print(folder: Path) -> AsyncIterator[Shot]:
    """Chains of 64 bytes from the guest."""
    async with Harness(ConsoleDevice(lambda data: None)) as h:
        queue = h.queues[1]

        async def shot(depth: int) -> tuple[DriverQueue, Callable[[], object]]:
            for _ in range(depth):
                queue.add([bytes(LINE)])
            return queue, queue.kick

        yield shot


@asynccontextmanager
async def console_type(folder: Path) -> AsyncIterator[Shot]:
    """64 bytes into each of the guest's buffers, as soon as the device has one."""
    device = ConsoleDevice(lambda data: None)
    left = bytearray()

    def give() -> None:
        del left[: device.receive(bytes(left))]

    async with Harness(device) as h:
        device.set_writable_callback(give)
        queue = h.queues[0]

        async def shot(depth: int) -> tuple[DriverQueue, Callable[[], object]]:
            while queue.free:
                queue.add([], [LINE])
            queue.kick()
            await rest()
            left.extend(bytes(LINE * depth))
            return queue, give

        yield shot


LOADS: dict[str, Load] = {
    "blk read": blk_read,
    "blk overlay read": partial(blk_read, make=overlay),
    "net send": net_send,
    "net receive": net_receive,
    "rng read": rng_read,
    "vsock send": vsock_send,
    "vsock receive": vsock_receive,
    "console output": console_print,
    "console input": console_type,
}
