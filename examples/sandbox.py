"""Commands in sandboxes, eight at once: each in a guest of its own, with a time limit, and a live table of what they do.

    python -m examples.sandbox layout/ 'uname -a' 'sleep 60' 'yes | head -c 10000000 | md5sum'

ROOT is a directory, a tar archive or an OCI layout; guests share it, and none sees what another writes.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

import aiovmm
from aiovmm import CommandTimeout, Image
from examples.ending import exit_code


@dataclass
class Job:
    """One command and what has become of it."""

    command: str
    state: str = "waits"
    begun: float = 0.0
    seconds: float = 0.0
    last_line: str = ""
    ok: bool = False

    def ended(self, state: str, output: bytes, *, ok: bool = False) -> None:
        """It is over."""
        self.state, self.ok = state, ok
        self.seconds = time.monotonic() - self.begun
        lines = output.decode(errors="replace").strip().splitlines()
        line = lines[-1] if lines else ""
        self.last_line = "".join(
            char if char.isprintable() else "?" for char in line
        )  # a guest's: no control sequences


class Board:
    """All jobs, as a table."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs

    def __rich__(self) -> Table:
        table = Table("command", "state", "seconds", "last line")
        for job in self._jobs:
            running = job.state in ("boots", "runs")
            seconds = time.monotonic() - job.begun if running else job.seconds
            texts = (job.command[:40], job.state, f"{seconds:.1f}", job.last_line[:60])
            table.add_row(*(Text(text) for text in texts))  # as they are: brackets are no markup
        return table


async def work(job: Job, image: Image, limit: float, settings: dict[str, Any]) -> None:
    """Run one command in a sandbox of its own. What it printed until its time was over is there, too."""
    job.state, job.begun = "boots", time.monotonic()
    try:
        async with aiovmm.sandbox(image, **settings) as vm:
            job.state = "runs"
            done = await vm.run(["sh", "-c", job.command], timeout=limit)
        job.ended(f"status {done.returncode}", done.stdout or done.stderr, ok=done.returncode == 0)
    except CommandTimeout as exc:
        job.ended("took too long", exc.stdout)
    except aiovmm.AiovmmError as exc:
        job.ended("failed", str(exc).encode())


async def main(root: Path, commands: Sequence[str], at_once: int, limit: float, **settings: Any) -> int:
    """All commands, `at_once` at a time; 0 if all ended so."""
    image = Image.of(root)
    jobs = [Job(command) for command in commands]
    places = asyncio.Semaphore(at_once)

    async def one(job: Job) -> None:
        async with places:
            await work(job, image, limit, settings)

    with Live(Board(jobs), console=Console(stderr=True), refresh_per_second=4):
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(one(job))
    for job in jobs:
        print(f"{job.command}: {job.state}: {job.last_line}")
    return 0 if all(job.ok for job in jobs) else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("commands", nargs="+")
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--timeout", type=float, default=10.0)
    parser.add_argument("--memory", default="256M")
    parser.add_argument("--kernel", type=Path, help="a kernel, with the directory of its modules beside it")
    args = parser.parse_args()
    settings: dict[str, Any] = {"memory": args.memory}
    if args.kernel is not None:
        from aiovmm.image import KernelFiles

        settings["kernel"] = KernelFiles(args.kernel, args.kernel.parent / "modules", "given")
    sys.exit(exit_code(lambda: main(args.root, args.commands, args.at_once, args.timeout, **settings)))
