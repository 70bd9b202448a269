"""What is measured of an agent, wherever it is: streams beside a raw one to the same place, and many short commands at once."""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from aiovmm.agent.agent import Agent
from aiovmm.agent.files import Files
from aiovmm.agent.run import run
from benchmarks.harness import Options, Result, Target, progress, run_rounds

__all__ = ["AIOVMM", "RAW", "SERVER", "Place", "rows"]

AIOVMM, RAW = "aiovmm", "a raw stream"
SERVER = "traffic serve"
"""The program whose streams are the raw ones; it is where the agent is."""
P = TypeVar("P", bound=asyncio.BaseProtocol)


class Place(Protocol):
    """Where an agent is, and the server beside it."""

    agent: Agent

    async def connect(self, factory: Callable[[], P]) -> P:
        """To the server, as the agent is connected to."""
        ...

    async def descriptors(self) -> int:
        """How many the agent has open, and processes that it has begun."""
        ...


class Raw(asyncio.BufferedProtocol):
    """A stream of the server's: counted, or filled as fast as it is taken."""

    def __init__(self) -> None:
        self.count = 0
        self.wanted = 0
        self.done = asyncio.get_running_loop().create_future()
        self._writable = asyncio.Event()
        self._writable.set()
        self._buffer = memoryview(bytearray(512 << 10))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is there."""
        self.transport: Any = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where bytes go."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Some have come."""
        self.count += nbytes
        if self.count >= self.wanted and not self.done.done():
            self.done.set_result(None)

    def pause_writing(self) -> None:
        """It takes no more."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It does."""
        self._writable.set()

    async def receive(self, size: int) -> None:
        """So much of what it sends."""
        self.wanted = size
        self.transport.write(b"s")
        await self.done
        self.transport.abort()

    async def send(self, size: int) -> None:
        """So much to it, until it says that it has it."""
        piece = bytes(256 << 10)
        self.wanted = 8
        self.transport.write(b"d")
        for _ in range(size // len(piece)):
            await self._writable.wait()
            self.transport.write(piece)
        self.transport.write_eof()
        await self.done
        self.transport.abort()


def rows(
    runner: asyncio.Runner, place: Place, options: Options, stream: Target | None = None, tail: Target | None = None
) -> Iterator[Result]:
    """One after the other; targets of the streams, and of the slowest commands."""
    size = options.pick(64, 1) << 20
    with tempfile.TemporaryDirectory(dir=Path("/var/tmp")) as name:
        streams = _Streams(place, Path(name), size)
        runner.run(streams.prepare())
        for title, ours, raw in streams.measures():
            if options.wants(title):
                row = Result(title, "MiB/s", AIOVMM, (RAW,), stream)
                contestants = {
                    AIOVMM: lambda ours=ours: runner.run(_speed(size, ours)),
                    RAW: lambda raw=raw: runner.run(_speed(size, raw)),
                }
                yield run_rounds(row, contestants, options.rounds)
    if options.wants("short commands"):
        yield _commands(runner, place, options, tail)


async def _speed(size: int, work: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await work()
    return size / (time.perf_counter() - began) / 2**20


class _Streams:
    """The same bytes by each way."""

    def __init__(self, place: Place, folder: Path, size: int) -> None:
        self._place = place
        self._folder = folder
        self._size = size
        self._files = Files(place.agent)
        self._there = f"/tmp/aiovmm-benchmark-{os.getpid()}"

    async def prepare(self) -> None:
        data = os.urandom(1 << 20) * (self._size >> 20)
        (self._folder / "in").write_bytes(data)
        await self._files.write(self._there, data)

    def measures(self) -> Iterator[tuple[str, Callable[[], Coroutine[Any, Any, object]], Callable[[], Any]]]:
        size = f"{self._size >> 20} MiB"
        yield f"{size} of stdout", self._stdout, self._raw_out
        yield f"{size} copied out", self._copy_out, self._raw_out
        yield f"{size} copied in", self._copy_in, self._raw_in

    async def _stdout(self) -> None:
        done = await run(self._place.agent, ["cat", self._there], check=True)
        if len(done.stdout) != self._size:
            raise RuntimeError(f"{len(done.stdout)} bytes of stdout came")

    async def _copy_out(self) -> None:
        await self._files.copy_out(self._there, self._folder / "out")

    async def _copy_in(self) -> None:
        await self._files.copy_in(self._folder / "in", self._there)

    async def _raw_out(self) -> None:
        await (await self._place.connect(Raw)).receive(self._size)

    async def _raw_in(self) -> None:
        await (await self._place.connect(Raw)).send(self._size)


def _commands(runner: asyncio.Runner, place: Place, options: Options, target: Target | None) -> Result:
    """The slowest of many against the usual one. Nothing of them may be left."""
    count = options.pick(1000, 60)
    row = Result(f"{count:,} short commands, 50 at once", "ms", "p99", ("p50",), target)
    for number in range(options.rounds):
        for name, value in runner.run(_percentiles(place, count)).items():
            row.add(name, value)
            progress(row, number, options.rounds, name, value)
    return row


async def _percentiles(place: Place, count: int) -> Mapping[str, float]:
    gate = asyncio.Semaphore(50)
    times: list[float] = []

    async def one() -> None:
        async with gate:
            began = time.perf_counter()
            await run(place.agent, ["true"], check=True)
            times.append(1e3 * (time.perf_counter() - began))

    await one()
    here, there = len(os.listdir("/proc/self/fd")), await place.descriptors()
    await asyncio.gather(*(one() for _ in range(count)))
    left = len(os.listdir("/proc/self/fd")) - here, await place.descriptors() - there
    if max(left) > 0:
        raise RuntimeError(f"descriptors and processes are left: {left[0]} here, {left[1]} of the agent's")
    cuts = statistics.quantiles(times, n=100)
    return {"p50": cuts[49], "p99": cuts[98]}
