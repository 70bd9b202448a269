"""What the console costs: guest output in, one and a hundred readers, expect over pieces, input out.

No guest and no device: only the stream that an embedder reads and writes. In milliseconds a mebibyte.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator

import uvloop

from aiovmm.console import Console
from benchmarks.harness import Options, Result, run_rounds

MIB = 1 << 20


class Sink:
    """A device that takes everything."""

    def receive(self, data: bytes) -> int:
        return len(data)

    def set_writable_callback(self, callback: Callable[[], None] | None) -> None:
        pass


async def feed(readers: int, piece: int) -> None:
    """One mebibyte in pieces, each read by all readers before the next comes."""
    console = Console(Sink())
    data = bytes(piece)

    async def consume() -> None:
        reader, left = console.reader(), MIB
        while left:
            left -= len(await reader.read())

    tasks = [asyncio.create_task(consume()) for _ in range(readers)]
    for _ in range(MIB // piece):
        console.feed(data)
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)


async def expect(piece: int) -> None:
    """A pattern that comes at the very end."""
    console = Console(Sink())
    task = asyncio.create_task(console.expect(rb"login: $"))
    for _ in range(MIB // piece):
        console.feed(bytes(piece))
        await asyncio.sleep(0)
    console.feed(b"login: ")
    await task


async def send() -> None:
    await Console(Sink()).send(bytes(MIB))


CASES: list[tuple[str, Callable[[], Awaitable[None]]]] = [
    ("feed, 4 KiB pieces, nobody reads", lambda: feed(0, 4096)),
    ("feed, 4 KiB pieces, 1 reader", lambda: feed(1, 4096)),
    ("feed, 4 KiB pieces, 100 readers", lambda: feed(100, 4096)),
    ("feed, 16-byte pieces, 1 reader", lambda: feed(1, 16)),
    ("expect, 4 KiB pieces", lambda: expect(4096)),
    ("expect, 16-byte pieces", lambda: expect(16)),
    ("send", send),
]


def run(options: Options) -> Iterator[Result]:
    """A row for each case."""
    for name, case in CASES:
        if options.wants(name):
            yield run_rounds(Result(name, "ms"), {"aiovmm": lambda c=case: uvloop.run(timed(c))}, options.rounds)  # type: ignore[misc]


async def timed(case: Callable[[], Awaitable[None]]) -> float:
    """Milliseconds of one run."""
    began = time.perf_counter()
    await case()
    return 1e3 * (time.perf_counter() - began)
