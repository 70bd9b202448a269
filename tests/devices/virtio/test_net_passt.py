"""passt, the network for unprivileged users: it answers DHCP, and its death takes the link down."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import struct
from pathlib import Path

import pytest

from aiovmm.config import NetConfig
from aiovmm.devices.virtio.net import NetDevice, PasstBackend
from aiovmm.devices.virtio.net.configured import make_net
from aiovmm.errors import HostError
from aiovmm.virtqueue.harness import Harness
from tests.devices.virtio.net_guest import NetGuest, ready, until
from tests.devices.virtio.test_net_tap import checksum
from tests.limits import HANGS

MAC = bytes.fromhex("2e0000000042")
needs_passt = pytest.mark.skipif(shutil.which("passt") is None, reason="passt is not installed (apt-get install passt)")


def discover() -> bytes:
    """A DHCPDISCOVER frame (RFC 2131)."""
    bootp = struct.pack("!BBBBIHH", 1, 1, 6, 0, 0x1234, 0, 0) + bytes(16) + MAC + bytes(10 + 192)
    bootp = (bootp + b"\x63\x82\x53\x63" + b"\x35\1\1" + b"\xff").ljust(300, b"\0")
    udp = struct.pack("!HHHH", 68, 67, 8 + len(bootp), 0) + bootp
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + bytes(4) + b"\xff" * 4
    return b"\xff" * 6 + MAC + b"\x08\0" + ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:] + udp


@needs_passt
async def test_it_offers_an_address() -> None:
    device = NetDevice(PasstBackend(["-a", "10.5.6.7", "-n", "24", "-g", "10.5.6.1"]), mac=MAC)
    await device.open()
    async with Harness(device) as harness:
        await ready(device)
        guest = NetGuest(harness)
        guest.fill()
        await guest.send(discover())
        while (packet := await guest.receive()).frame[12:14] != b"\x08\0":
            pass
        assert packet.frame[58:62] == socket.inet_aton("10.5.6.7")  # yiaddr
        assert isinstance(device.backend, PasstBackend)
        pid = device.backend.pid
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@needs_passt
async def test_its_death_takes_the_link_down() -> None:
    device = make_net(NetConfig(passt=True))
    await device.open()
    async with Harness(device) as harness:
        await ready(device)
        NetGuest(harness).fill()
        assert isinstance(device.backend, PasstBackend)
        assert device.backend.pid is not None
        os.kill(device.backend.pid, signal.SIGKILL)
        await until(lambda: not device.link)


async def test_without_passt_the_error_says_what_to_install() -> None:
    with pytest.raises(HostError, match="apt-get install passt"):
        await PasstBackend(program="no-such-passt").open()


async def test_one_that_cannot_run_leaves_its_last_words(tmp_path: Path) -> None:
    program = tmp_path / "passt"
    program.write_text('#!/bin/sh\nhead -c 100000 /dev/zero >&2\necho "Couldn\'t create user namespace" >&2\nexit 3\n')
    program.chmod(0o755)
    device = NetDevice(PasstBackend(program=str(program)))
    told: list[Exception] = []
    device._notify_error = told.append
    await device.open()
    await until(lambda: told)
    assert "passt has ended with code 3" in str(told[0])
    assert "Couldn't create user namespace" in str(told[0])
    assert len(str(told[0])) < 5000
    await device.close()
    assert len(told) == 1


async def test_a_program_that_reaps_whatever_ends_can_close_it(tmp_path: Path) -> None:
    """Who was told of its end is somebody else."""
    program = tmp_path / "passt"
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    backend = PasstBackend(program=str(program))
    await backend.open()
    assert backend.pid is not None
    os.kill(backend.pid, signal.SIGKILL)
    os.waitpid(backend.pid, 0)  # noqa: ASYNC222 - it ends at once
    async with asyncio.timeout(HANGS):
        await backend.close()
