"""The guest's side of virtio-vsock over driver queues: a small AF_VSOCK that follows the specification, or breaks it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from aiovmm.devices.virtio.vsock.device import VsockDevice
from aiovmm.devices.virtio.vsock.packet import (
    HEADER_SIZE,
    HOST_CID,
    MASK32,
    SHUTDOWN_BOTH,
    SHUTDOWN_RECEIVE,
    SHUTDOWN_SEND,
    Header,
    Op,
)
from aiovmm.virtqueue.harness import Harness
from tests.limits import HANGS

CID = 42
RX_BUFFER = HEADER_SIZE + 4096
RX_BUFFERS = 64
PACKET_MAX = 64 << 10


class Sock:
    """A stream socket of the guest."""

    def __init__(self, guest: Guest, port: int, peer: int, buffer: int = 64 << 10) -> None:
        self.guest, self.port, self.peer = guest, port, peer
        self.buffer = buffer
        self.data = bytearray()
        self.rx_cnt = self.fwd_cnt = self.announced = 0
        self.tx_cnt = self.peer_alloc = self.peer_fwd = 0
        self.peer_shutdown = 0
        self.established = self.reset = False

    def header(self, op: int, length: int = 0, flags: int = 0) -> Header:
        self.announced = self.fwd_cnt
        return Header(CID, HOST_CID, self.port, self.peer, length, 1, op, flags, self.buffer, self.fwd_cnt & MASK32)

    @property
    def credit(self) -> int:
        return self.peer_alloc - ((self.tx_cnt - self.peer_fwd) & MASK32)

    async def wait(self, condition: str, timeout: float = HANGS) -> None:
        """Until the attribute `condition` is true, or the connection is reset."""
        await self.guest.until(lambda: bool(getattr(self, condition)) or self.reset, timeout)

    async def send(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            await self.guest.until(lambda: self.credit > 0 or self.reset or self.peer_shutdown & SHUTDOWN_RECEIVE)
            if self.reset or self.peer_shutdown & SHUTDOWN_RECEIVE:
                raise BrokenPipeError
            part = data[at : at + min(self.credit, PACKET_MAX)]
            self.tx_cnt = (self.tx_cnt + len(part)) & MASK32
            at += len(part)
            await self.guest.send(self.header(Op.RW, len(part)), part)

    async def recv(self, limit: int = 1 << 30) -> bytes:
        """What is there, at least one byte; b"" at the end of the stream."""
        await self.guest.until(lambda: self.data or self.peer_shutdown & SHUTDOWN_SEND or self.reset)
        part = bytes(self.data[:limit])
        del self.data[:limit]
        self.fwd_cnt += len(part)
        if self.fwd_cnt - self.announced >= self.buffer // 2 and not self.reset:
            await self.guest.send(self.header(Op.CREDIT_UPDATE))
        return part

    async def recv_exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = await self.recv(size - len(data))
            assert part, f"the stream ended after {len(data)} of {size} bytes"
            data += part
        return data

    async def recv_all(self) -> bytes:
        parts = []
        while part := await self.recv():
            parts.append(part)
        return b"".join(parts)

    async def shutdown(self, flags: int) -> None:
        await self.guest.send(self.header(Op.SHUTDOWN, flags=flags))

    async def close(self) -> None:
        """As Linux: SHUTDOWN of both directions, then the other side's RST."""
        if not self.reset:
            await self.shutdown(SHUTDOWN_BOTH)
            await self.wait("reset")
        self.guest.forget(self)


class Guest:
    """Async context manager around a running harness. `stray`: packets for no socket of ours."""

    def __init__(self, harness: Harness, *, buffers: int = RX_BUFFERS) -> None:
        self.harness = harness
        self.sockets: dict[tuple[int, int], Sock] = {}
        self.listening: dict[int, deque[Sock]] = {}
        self.stray: list[Header] = []
        self.log: list[Header] = []
        self._ports = iter(range(5000, 1 << 20))
        self._buffers = buffers
        self._rx, self._tx = harness.queues[0], harness.queues[1]
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        for _ in range(self._buffers):
            self._rx.add(writable=[HEADER_SIZE, RX_BUFFER - HEADER_SIZE])
        self._rx.kick()
        self._task = asyncio.get_running_loop().create_task(self._receive())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._task is not None
        if self._task.done() and kind is None:
            self._task.result()
        self._task.cancel()
        await asyncio.wait([self._task])

    async def until(self, condition: Callable[[], object], timeout: float = HANGS) -> None:
        async with asyncio.timeout(timeout):
            while not condition():
                if self._task is not None and self._task.done():
                    self._task.result()
                await asyncio.sleep(0.001)

    # -- sockets

    def listen(self, port: int) -> None:
        self.listening[port] = deque()

    async def accept(self, port: int) -> Sock:
        await self.until(lambda: self.listening[port])
        return self.listening[port].popleft()

    async def connect(self, port: int, *, buffer: int = 64 << 10) -> Sock:
        """A connected socket. Raises ConnectionRefusedError."""
        sock = Sock(self, next(self._ports), port, buffer)
        self.sockets[sock.port, port] = sock
        await self.send(sock.header(Op.REQUEST))
        await sock.wait("established")
        if sock.reset:
            self.forget(sock)
            raise ConnectionRefusedError
        return sock

    def forget(self, sock: Sock) -> None:
        self.sockets.pop((sock.port, sock.peer), None)

    # -- packets

    async def send(self, header: Header, payload: bytes = b"") -> None:
        while len(self._tx.free) < 2:
            await self._tx.used()
        self._tx.add([header.pack(), payload] if payload else [header.pack()])
        self._tx.kick()

    async def _receive(self) -> None:
        while True:
            for used in await self._rx.used(timeout=3600):
                header = Header.parse(used.data)
                assert used.length == HEADER_SIZE + header.length
                self.log.append(header)
                await self._packet(header, used.data[HEADER_SIZE:])
                self._rx.add(writable=[HEADER_SIZE, RX_BUFFER - HEADER_SIZE])
            self._rx.kick()

    async def _packet(self, header: Header, payload: bytes) -> None:
        assert header.dst_cid == CID
        sock = self.sockets.get((header.dst_port, header.src_port))
        if sock is None:
            if header.op == Op.REQUEST and header.dst_port in self.listening:
                sock = Sock(self, header.dst_port, header.src_port)
                sock.established = True
                sock.peer_alloc, sock.peer_fwd = header.buf_alloc, header.fwd_cnt
                self.sockets[header.dst_port, header.src_port] = sock
                self.listening[header.dst_port].append(sock)
                await self.send(sock.header(Op.RESPONSE))
            elif header.op == Op.REQUEST:
                await self.send(Header(CID, HOST_CID, header.dst_port, header.src_port, op=Op.RST))
            else:
                self.stray.append(header)
            return
        sock.peer_alloc, sock.peer_fwd = header.buf_alloc, header.fwd_cnt
        if header.op == Op.RW:
            sock.rx_cnt += len(payload)
            assert sock.rx_cnt - sock.fwd_cnt <= sock.buffer, "the device sends more than we gave it credit for"
            assert not sock.peer_shutdown & SHUTDOWN_SEND, "payload after SHUTDOWN"
            sock.data += payload
        elif header.op == Op.RESPONSE:
            sock.established = True
        elif header.op == Op.RST:
            sock.reset = True
        elif header.op == Op.SHUTDOWN:
            sock.peer_shutdown |= header.flags
        elif header.op == Op.CREDIT_REQUEST:
            await self.send(sock.header(Op.CREDIT_UPDATE))


def make_device(**options: object) -> VsockDevice:
    return VsockDevice(CID, **options)  # type: ignore[arg-type]
