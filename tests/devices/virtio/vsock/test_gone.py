"""A host end that goes before the guest has answered: whoever waits for the connection is told, and nothing of it is kept."""

from __future__ import annotations

import asyncio
import gc
import socket
from pathlib import Path

import pytest

from aiovmm.devices.virtio.vsock.link import Link
from aiovmm.devices.virtio.vsock.packet import Op
from aiovmm.virtqueue.harness import Harness
from tests.devices.virtio.vsock.guest import Guest, make_device
from tests.limits import HANGS


class Mute(Guest):
    """Says nothing to who wants to be connected."""

    async def _packet(self, header: object, payload: bytes) -> None: ...


async def test_who_joins_a_socket_hears_that_its_other_half_has_gone() -> None:
    device = make_device()
    async with Harness(device) as harness, Mute(harness) as guest:
        ours, theirs = socket.socketpair()
        joining = asyncio.ensure_future(device.streams.join(9, ours))
        await guest.until(lambda: any(header.op == Op.REQUEST for header in guest.log))
        theirs.close()
        async with asyncio.timeout(HANGS):
            with pytest.raises(ConnectionResetError, match="before the guest"):
                await joining
        assert device.connections == 0
        assert device._switch.share.held == 0


async def test_of_clients_that_leave_at_once_nothing_is_kept(tmp_path: Path) -> None:
    """Else as much as they can make within the time that a client may take."""
    device = make_device(path=tmp_path / "v.sock", connect_timeout=HANGS)
    async with Harness(device) as harness, Mute(harness) as guest:
        for number in range(1, 21):
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(tmp_path / "v.sock"))
            client.sendall(b"CONNECT 9\n")
            while [header.op for header in guest.log].count(Op.REQUEST) < number:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            client.close()
        await guest.until(lambda: device.connections == 0)
        gc.collect()
        assert not [one for one in gc.get_objects() if isinstance(one, Link)]
        assert device._switch.share.held == 0
