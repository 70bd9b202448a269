"""Devices that a hostile driver is let at, each with a good request: those that most guests have."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time
from abc import ABC, abstractmethod
from pathlib import Path

from aiovmm.devices.virtio.balloon import BalloonDevice
from aiovmm.devices.virtio.blk import BlkDevice, DiskImage
from aiovmm.devices.virtio.console import ConsoleDevice
from aiovmm.devices.virtio.net import NetDevice
from aiovmm.devices.virtio.net.sockets import SocketBackend
from aiovmm.devices.virtio.rng import RngDevice
from aiovmm.devices.virtio.rng.source import open_source
from aiovmm.devices.virtio.vsock import VsockDevice
from aiovmm.devices.virtio.vsock.packet import HEADER_SIZE, HOST_CID, STREAM, Op, pack_header, parse_headers
from aiovmm.memory import GuestMemory
from aiovmm.pci.virtio_driver import VirtioPciDriver
from aiovmm.virtqueue.device import VirtioDevice

__all__ = ["USUAL", "Disk", "Target"]

CID = 5
SECTOR = 512


class Target(ABC):
    """`device`, and `queue`: the one whose chains it takes as soon as they are offered. `readable` and `room` make a good chain
    there."""

    device: VirtioDevice
    queue = 0
    readable: tuple[bytes, ...] = ()
    room: tuple[int, ...] = ()

    @abstractmethod
    def __init__(self, place: Path) -> None:
        """`place`: a directory for its files."""

    @abstractmethod
    async def good(self, driver: VirtioPciDriver) -> None:
        """A request of a good driver is answered as it should be."""

    def power_on(self, _memory: GuestMemory) -> None:
        """The machine has this memory."""
        return

    async def open(self) -> None:
        await self.device.open()

    async def close(self) -> None:
        await self.device.close()


class Disk(Target):
    """64 KiB, each sector of its own number."""

    readable, room = (struct.pack("<IIQ", 0, 0, 3),), (SECTOR, 1)

    def __init__(self, place: Path) -> None:
        path = place / f"disk{time.monotonic_ns()}"
        path.write_bytes(b"".join(bytes([number]) * SECTOR for number in range(128)))
        self.device = BlkDevice(DiskImage.open(path))

    async def good(self, driver: VirtioPciDriver) -> None:
        assert await driver.request(0, [struct.pack("<IIQ", 0, 0, 3)], [SECTOR, 1]) == b"\3" * SECTOR + b"\0"


class Entropy(Target):
    """/dev/urandom."""

    room = (16,)

    def __init__(self, _place: Path) -> None:
        self.device = RngDevice(lambda: open_source(Path("/dev/urandom")))

    async def good(self, driver: VirtioPciDriver) -> None:
        assert len(await driver.request(0, [], [16])) == 16


class Terminal(Target):
    """A console whose output is kept."""

    queue = 1
    readable = (b"good",)

    def __init__(self, _place: Path) -> None:
        self.said = bytearray()
        self.device = ConsoleDevice(self.said.extend)

    async def good(self, driver: VirtioPciDriver) -> None:
        word = os.urandom(4).hex().encode()
        await driver.request(1, [word])
        end = time.monotonic() + 10
        while word not in self.said:  # output is handed on in pieces, some milliseconds later
            assert time.monotonic() < end
            await asyncio.sleep(0.001)


class Card(Target):
    """A network card, whose frames go to a socket."""

    queue = 1
    readable = (bytes(12) + bytes(6) + b"\2\0\0\0\0\1" + b"\x88\xb5" + bytes(46),)

    def __init__(self, _place: Path) -> None:
        ours, self.peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.peer.setblocking(False)
        self.device = NetDevice(SocketBackend(ours))

    async def good(self, driver: VirtioPciDriver) -> None:
        self._drain()
        frame = bytes(6) + b"\2\0\0\0\0\1" + b"\x88\xb5" + os.urandom(46)
        await driver.request(1, [bytes(12) + frame])
        assert frame in self._drain()

    def _drain(self) -> list[bytes]:
        frames = []
        while True:
            try:
                frames.append(self.peer.recv(65536))
            except BlockingIOError:
                return frames

    async def close(self) -> None:
        await super().close()
        self.peer.close()


class Sockets(Target):
    """vsock, where nobody listens."""

    queue = 1
    readable = (pack_header(CID, HOST_CID, 1, 9, 0, STREAM, Op.REQUEST, 0, 4096, 0),)

    def __init__(self, _place: Path) -> None:
        self.device = VsockDevice(CID)
        self._port = 1000

    async def good(self, driver: VirtioPciDriver) -> None:
        self._port += 1
        receive = driver.queues[0]
        receive.add([], [4096])
        receive.kick()
        await driver.request(1, [pack_header(CID, HOST_CID, self._port, 9, 0, STREAM, Op.REQUEST, 0, 4096, 0)])
        for _ in range(64):  # what was answered to packets of before may come first
            (used,) = await receive.used()
            header = parse_headers(used.data[:HEADER_SIZE])[0]
            if header.dst_port == self._port:
                assert header.op == Op.RST
                return
            receive.add([], [4096])
            receive.kick()
        raise AssertionError("no answer")


class Balloon(Target):
    """Pages at 14 MiB and up are nobody's."""

    readable = (struct.pack("<I", 0xE00),)

    def __init__(self, _place: Path) -> None:
        self.device = BalloonDevice(16 << 20)

    async def good(self, driver: VirtioPciDriver) -> None:
        await driver.request(0, [struct.pack("<II", 0xE00, 0xE01)])
        await driver.request(1, [struct.pack("<II", 0xE00, 0xE01)])


USUAL: dict[str, type[Target]] = {
    "blk": Disk,
    "net": Card,
    "rng": Entropy,
    "vsock": Sockets,
    "console": Terminal,
    "balloon": Balloon,
}
