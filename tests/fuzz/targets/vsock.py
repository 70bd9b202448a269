"""Packets of a guest's socket device against all connections that there may be, and the host's end of these; the lines of who
connects from the host."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from pathlib import Path

from aiovmm.devices.virtio.vsock.connection import Effect, State
from aiovmm.devices.virtio.vsock.device import VsockDevice
from aiovmm.devices.virtio.vsock.muxer import Muxer
from aiovmm.devices.virtio.vsock.packet import HEADER_SIZE, HOST_CID, STREAM, Header, Op, parse_headers
from tests.fuzz.source import Source

_CID, _BUFFER, _LIMIT = 5, 1 << 16, 16
_REQUEST = Header(_CID, HOST_CID, 1000, 9, 0, STREAM, Op.REQUEST, 0, 4096, 0).pack()
_DATA = Header(_CID, HOST_CID, 1000, 9, 100, STREAM, Op.RW, 0, 4096, 0).pack()
SEEDS = [
    b"\0\0" + _REQUEST + b"\2\0\0" + _DATA + b"\1\0\4",
    b"\0\1\7\0" + Header(_CID, HOST_CID, 7, 1024, 0, STREAM, Op.RESPONSE, 0, 4096, 0).pack() + b"\3\3",
    b"\1CONNECT 1000\n",
    b"\1CONNECT 4294967295\r\nmore",
]


def _check(muxer: Muxer) -> None:
    assert len(muxer.connections) <= _LIMIT
    for connection in muxer.connections.values():
        assert connection.state is not State.CLOSED
        assert connection.unforwarded <= _BUFFER
        assert len(connection.pending) <= len(Op)


def _packets(source: Source) -> None:
    muxer = Muxer(_CID, buffer=_BUFFER, limit=_LIMIT)
    while source:
        what, connections = source.below(6), list(muxer.connections.values())
        if what == 0:
            (header,) = parse_headers(source.take(HEADER_SIZE).ljust(HEADER_SIZE, b"\0"))
            effect, connection = muxer.receive(header)
            assert connection is not None or effect is Effect.NONE
        elif what == 1:
            muxer.connect(source.number(2))
        elif what == 5:
            while muxer.next_reset() is not None:
                pass
            if (connection := muxer.next_turn()) is not None and (control := connection.next_control()) is not None:
                assert len(control) == HEADER_SIZE
        elif connections:
            connection = source.one(connections)
            if what == 2 and connection.state is State.PENDING:
                connection.accept()
            elif what == 3:
                connection.end(1 + source.below(3))
            elif what == 4:
                connection.forwarded(source.below(connection.unforwarded + 1))
            muxer.settle(connection)
        _check(muxer)


_loop = asyncio.new_event_loop()
_place = tempfile.TemporaryDirectory(prefix="aiovmm-fuzz-")
_path = Path(_place.name) / "vsock"
_device = VsockDevice(_CID, _path, connect_timeout=60.0)


async def _line(data: bytes) -> None:
    """What a program on the host may write; no guest is there, so nobody is connected."""
    if not _path.exists():
        await _device.open()
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        client.connect(str(_path))
        client.send(data or b"\n")
        for _ in range(3):
            await asyncio.sleep(0)
    for _ in range(3):
        await asyncio.sleep(0)


def run(data: bytes) -> None:
    source = Source(data)
    if source.number() % 2 == 0:
        _packets(source)
    else:
        _loop.run_until_complete(_line(source.rest()))
