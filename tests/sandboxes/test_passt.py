"""The real passt behind a sandbox's filter, with a kernel's own TCP as the guest's, in a network of this test's own."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from aiovmm.devices.virtio.net import PasstBackend
from aiovmm.sandboxes.network import Network
from tests.devices.virtio.netns import ip, ipv6, namespace
from tests.limits import HANGS
from tests.sandboxes.test_streams import _IFF_NO_PI, _IFF_TAP, _TUNSETIFF
from tests.sandboxes.world import HERE, HERE6, NEAR, OTHER, PAGE, WEB, WEB6, digest, inside, world

pytestmark = pytest.mark.skipif(shutil.which("passt") is None, reason="passt is not installed (apt-get install passt)")
_CANNOT_CONNECT = 7  # as curl says it
_RESET = (_CANNOT_CONNECT, 18, 52, 55, 56)  # before it was there, or in its midst


class Card:
    """One as a sandbox's guest has it, in a network namespace of its own: that of the process `pid`."""

    def __init__(self, tap: int, pid: int) -> None:
        self.tap = tap
        self.pid = pid

    async def curl(self, *words: str) -> tuple[int, bytes]:
        """Its status, and what it fetched, asked in there."""
        command = inside(self.pid, f"curl --silent --globoff --max-time {HANGS:.0f}")
        process = await asyncio.create_subprocess_exec(*command, *words, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out

    async def gets(self, *words: str) -> bytes:
        """What it fetched. passt resets connections whose guest was without a processor for two seconds (its ACK_TIMEOUT)."""
        async with asyncio.timeout(HANGS):
            while (answer := await self.curl(*words))[0]:
                assert answer[0] in _RESET, answer
            return answer[1]


@pytest.fixture
def card() -> Iterator[Card]:
    with namespace():
        ipv6(on=True)
        ip("link set lo up")
        tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", b"t0", _IFF_TAP | _IFF_NO_PI))
        with subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
            process.stdout.read(1)  # it is in its own now
            ip(f"link set t0 netns {process.pid}")
            for command in (
                *("link set lo up", "link set t0 up", "address add 10.0.2.15/24 dev t0"),
                *("address add fd00:a10::15/64 dev t0 nodad", "route add default via 10.0.2.2"),
                "-6 route add default via fe80::2 dev t0",
            ):
                subprocess.run(inside(process.pid, f"ip {command}"), check=True)
            yield Card(tap, process.pid)
            process.kill()
        os.close(tap)


@asynccontextmanager
async def connected(card: Card, network: Network) -> AsyncIterator[PasstBackend]:
    """The card's frames go through what a sandbox has, and back."""
    loop = asyncio.get_running_loop()
    backend = network.device().backend
    assert isinstance(backend, PasstBackend)
    await backend.open()
    sock = socket.socket(fileno=os.dup(backend.ports[0].fd))
    reader, writer = await asyncio.open_connection(sock=sock)

    def from_guest() -> None:
        frame = os.read(card.tap, 65536)
        writer.write(len(frame).to_bytes(4, "big") + frame)

    async def to_guest() -> None:
        while True:
            os.write(card.tap, await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big")))

    loop.add_reader(card.tap, from_guest)
    carrying = asyncio.ensure_future(to_guest())
    try:
        yield backend
        assert not carrying.done()
    finally:
        loop.remove_reader(card.tap)
        carrying.cancel()
        await asyncio.wait([carrying])
        writer.transport.abort()
        await backend.close()


async def test_what_is_allowed_is_reached_both_ways_and_the_rest_is_not(card: Card, tmp_path: Path) -> None:
    """A page fetched, a file posted, by IPv4 and IPv6; refused at once: another server, this host at its own addresses, which are
    of an allowed network, and its loopback."""
    posted = tmp_path / "posted"
    posted.write_bytes(os.urandom(3 << 20))
    with world() as around:
        async with connected(card, Network(allow=NEAR)):
            for host in (WEB, f"[{WEB6}]"):
                assert await card.gets(f"http://{host}/fetched") == PAGE
                said = await card.gets("--data-binary", f"@{posted}", f"http://{host}/posted")
                assert said == digest(posted.read_bytes()).encode()
            with socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True):
                for host in (OTHER, HERE, f"[{HERE6}]", "10.0.2.2"):
                    assert await card.curl(f"http://{host}/denied") == (_CANNOT_CONNECT, b"")
        async with connected(card, Network()):
            assert await card.gets(f"http://{OTHER}/all") == PAGE
            assert await card.curl(f"http://{HERE}/denied") == (_CANNOT_CONNECT, b"")
        assert {*around.end()} == {"/fetched", "/posted", "/all"}


async def test_the_hosts_loopback_where_that_is_allowed(card: Card) -> None:
    with world():
        async with connected(card, Network(host=True)), await asyncio.start_server(_hello, "127.0.0.1", 8000):
            assert await card.gets("http://10.0.2.2:8000/") == b"hello"


async def _hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.0 200 OK\r\n\r\nhello")
    await writer.drain()
    writer.close()
