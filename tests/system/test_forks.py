"""Forks of a guest that sends over TCP: what it had sent is sent on by one of them, and twice by none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from aiovmm import VM, ConsoleConfig, DiskConfig, NetConfig, VMConfig, VsockConfig
from tests.system.conftest import Guests
from tests.system.guest import limit, prompt, shell

HOST, GUEST = "10.9.0.1", "10.9.0.2"
NET = NetConfig(ip=HOST, mask="255.255.255.0")
MIB = 1 << 20
NUMBERS = "i=0; while :; do i=$((i+1)); echo n$i; usleep 10000; done"
LIMIT = limit(60.0)


class Host:
    """What the guests send is received here and looked at."""

    def __init__(self) -> None:
        self.port = 0
        self.numbers = 0
        """Received over TCP, all of them in their order."""
        self.wrong: list[str] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Numbers, a line each, from 1 on in each connection."""
        self._writers.append(writer)
        expected = 1
        try:
            while line := await reader.readline():
                if line.endswith(b"\n") and line != b"n%d\n" % expected:
                    self.wrong.append(f"TCP: {line!r}, not {expected}")
                expected += 1
                self.numbers += 1
        except ConnectionError:
            return
        finally:
            writer.close()

    def hang_up(self) -> None:
        """All TCP connections: who had them is gone."""
        while self._writers:
            self._writers.pop().transport.abort()


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not await condition():
        assert time.monotonic() < deadline, f"{what} does not go on"
        await asyncio.sleep(0.1)


async def _is(value: bool) -> bool:
    return value


def configured(guests: Guests, release: str, folder: Path) -> VMConfig:
    (folder / "disk0").write_bytes(bytes(32 * MIB))
    return guests.config(
        release,
        cpus=4,
        console=ConsoleConfig(),
        vsock=VsockConfig(),
        disks=(DiskConfig(path=folder / "disk0", direct=False),),
        nets=(NET,),
    )


@pytest.mark.parametrize("release", ["6.1", "newest"])
async def test_a_connection_goes_on_in_the_fork_that_is_given_its_network(
    guests: Guests, release: str, folder: Path
) -> None:
    """And in no other: what a parent has sent is not sent again by all of its children."""
    host = Host()
    async with await asyncio.start_server(host.tcp, "0.0.0.0", 0) as server:
        host.port = server.sockets[0].getsockname()[1]
        async with VM(configured(guests, release, folder)) as vm:
            await vm.start()
            await prompt(vm)
            await shell(vm, f"ip address add {GUEST}/24 dev eth0; ip link set eth0 up")
            await shell(vm, f"(sh -c '{NUMBERS}' | nc {HOST} {host.port}) </dev/null 2>/dev/null & true")
            await until(lambda: _is(host.numbers > 20), "TCP")
            template = await vm.freeze()
        async with template:
            sent = host.numbers  # what was on its way has been read by then, or is lost
            async with template.fork() as one, template.fork() as other:
                for child in (one, other):
                    await child.resume()
                await asyncio.gather(*(shell(child, "sleep 3; pidof nc") for child in (one, other)))
            assert host.numbers <= sent + 20, "a buffer at most, and nothing after it"
            sent = host.numbers
            async with template.fork(nets=(NET,)) as child:
                await child.resume()
                await until(lambda: _is(host.numbers > sent + 50), "TCP")
            assert not host.wrong, "nothing is missing, and nothing twice"
        host.hang_up()
