"""Many guests, some at a time, and a live table of what they do.

    python -m examples.pool vmlinuz initramfs.cpio --guests 100 --at-once 16 --until 'guest:\\S+ '

Each user takes a guest, waits until its serial port has printed what `--until` looks for, and gives it back. The pool keeps a few
ready meanwhile, and whoever waits gets the next.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from aiovmm import MemoryConfig, PayloadConfig, Pool, PoolStats, VMConfig


class Board:
    """What each user's guest has come to."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.took: dict[str, float] = {}

    def __rich__(self) -> Table:
        stats: PoolStats = self._pool.stats()
        table = Table(title=f"{len(self.took)} done, {stats.waiting} wait for a guest")
        for name in ("starting", "warm", "in_use", "leaving"):
            table.add_column(name.replace("_", " "), justify="right")
        table.add_column("last ones, milliseconds", min_width=60)
        last = ", ".join(f"{name} {took * 1000:.0f}" for name, took in [*self.took.items()][-4:])
        table.add_row(str(stats.starting), str(stats.warm), str(stats.in_use), str(stats.leaving), last)
        return table


async def use(pool: Pool, board: Board, until: bytes) -> None:
    """One user: a guest of its own, for as long as it takes."""
    async with pool.acquire() as vm:
        begin = time.perf_counter()
        await vm.serial.expect(until, timeout=120)
        board.took[vm.name] = time.perf_counter() - begin


async def main(config: VMConfig, guests: int, at_once: int, until: bytes) -> None:
    """`guests` users, of whom `at_once` have one at a time."""
    begin = time.perf_counter()
    async with Pool(config, warm=min(4, at_once), max=at_once) as pool:
        board = Board(pool)
        with Live(board, console=Console(stderr=True), refresh_per_second=8):
            async with asyncio.TaskGroup() as group:
                for _ in range(guests):
                    group.create_task(use(pool, board, until))
    took = time.perf_counter() - begin
    print(f"{len(board.took)} guests in {took:.2f} s: {guests / took:.0f} a second")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("kernel", type=Path)
    parser.add_argument("initramfs", type=Path, nargs="?")
    parser.add_argument("--cmdline", default=None)
    parser.add_argument("--memory", default="256M")
    parser.add_argument("--guests", type=int, default=100)
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--until", default=r"guest:\S+ ?[#$] ")
    args = parser.parse_args()
    payload = PayloadConfig(args.kernel, args.initramfs, args.cmdline)
    vm = VMConfig(payload, memory=MemoryConfig(size=args.memory), rng=None, name="guest")
    asyncio.run(main(vm, args.guests, args.at_once, args.until.encode()))
