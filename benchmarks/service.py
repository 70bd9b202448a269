"""Guests behind HTTP (examples/service.py): a guest a request, its console over a WebSocket, and how late the service's loop is
meanwhile. The clients are one process, the service and its guests another.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import uvloop
from aiohttp import web

from aiovmm import VM
from benchmarks.harness import Options, Result, Target, progress
from examples.service import Service
from tests.vm.guest import config

NEEDS_KVM = True
ROWS = {
    "POST /vms to its console's first byte, median": ("ms", None),
    "echo over the WebSocket, median": ("ms", None),
    "the loop late, 99 of 100": ("ms", Target(plus=10.0)),
    "the loop late, at most": ("ms", None),
}
ECHOES = 20


def run(options: Options) -> Iterator[Result]:
    """Fifty clients at once, each with a guest."""
    count = options.pick(50, 3)
    rows = {what: Result(f"{count} clients: {what}", unit, target=target) for what, (unit, target) in ROWS.items()}
    for number in range(options.pick(min(options.rounds, 3), 1)):
        measured = in_two_processes(count)
        for what, row in rows.items():
            row.add("aiovmm", measured[what])
        progress(
            rows["the loop late, 99 of 100"], number, options.rounds, "aiovmm", measured["the loop late, 99 of 100"]
        )
    yield from rows.values()


def in_two_processes(count: int) -> dict[str, float]:
    """All figures. The service tells its port, and, when its input ends, how late its loop has been."""
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", __name__]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdin is not None
        assert service.stdout is not None
        port = int(service.stdout.readline())
        try:
            figures = uvloop.run(clients(port, count))
        finally:
            service.stdin.close()
        return figures | dict(json.loads(service.stdout.readline()))


# -- the clients


async def clients(port: int, count: int) -> dict[str, float]:
    """Their figures."""
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        figures = await asyncio.gather(*(client(session) for _ in range(count)))
    firsts, echoes = sorted(first for first, _ in figures), sorted(each for _, each in figures)
    what = list(ROWS)
    return {what[0]: 1e3 * firsts[count // 2], what[1]: 1e3 * echoes[count // 2]}


async def client(session: aiohttp.ClientSession) -> tuple[float, float]:
    """Seconds to a guest's first byte, and its median echo."""
    began = time.perf_counter()
    async with session.post("/vms") as answer:
        id_ = (await answer.json())["id"]
    async with session.ws_connect(f"/vms/{id_}/console") as socket:
        said = await socket.receive_bytes()
        first = time.perf_counter() - began
        while not said.endswith(b"hello\n"):
            said += await socket.receive_bytes()
        times = []
        for _ in range(ECHOES):
            began = time.perf_counter()
            await socket.send_bytes(b"a")
            await socket.receive_bytes()
            times.append(time.perf_counter() - began)
    async with session.delete(f"/vms/{id_}"):
        return first, sorted(times)[ECHOES // 2]


# -- the service, a process of its own


@asynccontextmanager
async def guest(name: str, **_wanted: object) -> AsyncIterator[VM]:
    """One that says hello, and then what it is told."""
    async with VM(config("hl", name=name), terminal=False) as vm:
        await vm.start()
        yield vm


async def serve() -> None:
    """Until standard input ends. What is imported for the first guest is there before."""
    async with guest("first") as vm:
        await vm.serial.expect(rb"hello\n", 20)
    runner = web.AppRunner(Service(guest, most=1000).app(), handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    over = asyncio.ensure_future(asyncio.to_thread(sys.stdin.read))
    print(runner.addresses[0][1], flush=True)
    times = []
    while not over.done():
        began = time.perf_counter()
        await asyncio.sleep(0)
        times.append(time.perf_counter() - began)
        await asyncio.sleep(0.001)
    await runner.cleanup()
    times.sort()
    late = {"99 of 100": times[(len(times) - 1) * 99 // 100], "at most": times[-1]}
    print(json.dumps({f"the loop late, {what}": 1e3 * seconds for what, seconds in late.items()}), flush=True)


if __name__ == "__main__":
    uvloop.run(serve())
