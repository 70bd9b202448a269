"""A runner for tests: the working directory goes into a guest, a command runs there, its files come out again.

    python -m examples.ci_runner debian.tar 'make test' --source . --artifacts report.xml --artifacts build/log

What the command prints comes as it is printed; its status is the exit code, 124 if it took too long. The source is a copy:
nothing that the command does to it is seen here.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import aiovmm
from aiovmm import Image
from examples.ending import exit_code


async def copy(stream: asyncio.StreamReader, out: BinaryIO) -> None:
    """What comes, as it comes."""
    while data := await stream.read(1 << 16):
        out.write(data)
        out.flush()


async def run(
    root: Path,
    command: str,
    source: Path,
    artifacts: Sequence[str],
    into: Path,
    limit: float,
    work: str = "/work",
    **settings: Any,
) -> int:
    """The exit code. Artifacts that are there come out even if the command failed."""
    async with aiovmm.sandbox(Image.of(root), **settings) as vm:
        await vm.files.copy_in(source, work)
        null = asyncio.subprocess.DEVNULL  # and `ends`: a server that the tests have left running is not waited for
        process = await vm.create_process("sh", "-c", command, cwd=work, stdin=null, ends=True)
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            async with asyncio.timeout(limit), asyncio.TaskGroup() as group:
                group.create_task(copy(process.stdout, sys.stdout.buffer))
                group.create_task(copy(process.stderr, sys.stderr.buffer))
                group.create_task(process.wait())
            status = process.returncode or 0
        except TimeoutError:
            process.kill()
            print(f"took longer than {limit:g} s", file=sys.stderr)
            status = 124
        for name in artifacts:
            try:
                (into / name).parent.mkdir(parents=True, exist_ok=True)
                await vm.files.copy_out(f"{work}/{name}", into / name)
            except FileNotFoundError:
                print(f"there is no {name}", file=sys.stderr)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("command")
    parser.add_argument("--source", type=Path, default=Path())
    parser.add_argument("--artifacts", action="append", default=[])
    parser.add_argument("--into", type=Path, default=Path("artifacts"))
    parser.add_argument("--work", default="/work", help="where the source goes in the guest (%(default)s)")
    parser.add_argument("--timeout", type=float, default=600.0)
    parser.add_argument("--memory", default="1G")
    parser.add_argument("--kernel", type=Path, help="a kernel, with the directory of its modules beside it")
    args = parser.parse_args()
    settings: dict[str, Any] = {"memory": args.memory}
    if args.kernel is not None:
        from aiovmm.image import KernelFiles

        settings["kernel"] = KernelFiles(args.kernel, args.kernel.parent / "modules", "given")
    places = args.source, args.artifacts, args.into
    sys.exit(exit_code(lambda: run(args.root, args.command, *places, args.timeout, args.work, **settings)))
