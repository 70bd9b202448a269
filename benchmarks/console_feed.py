"""What the console costs: guest output in, one and a hundred readers, expect over pieces, input out.

Run `python -m benchmarks.console_feed`. Figures are the best of five, in milliseconds a mebibyte.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import uvloop

from aiovmm.console import Console

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


async def best_of(case: Callable[[], Awaitable[None]], times: int = 5) -> float:
    """Seconds of the fastest run."""
    durations = []
    for _ in range(times):
        began = time.perf_counter()
        await case()
        durations.append(time.perf_counter() - began)
    return min(durations)


async def main() -> None:
    for name, case in CASES:
        print(f"{name:36} {await best_of(case) * 1e3:9.2f} ms")


if __name__ == "__main__":
    uvloop.run(main())
