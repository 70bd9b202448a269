"""One way to have sandboxes, in a process of its own. It is told what to measure, a line each, and answers with a line of JSON.

python -m benchmarks.sandbox_worker KIND FOLDER RELEASE MIB
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.sandbox_kinds import KINDS, Kind
from benchmarks.sandbox_root import DATA

_EXECS = 20
_IDLE = 3.0  # seconds that guests have to come to rest
Values = Mapping[str, float]


class Worker:
    """Each measure is a method. Times are in milliseconds, throughput in MiB/s, memory in MiB."""

    def __init__(self, kind: Any, folder: Path, mib: int) -> None:
        self._kind: Kind = kind
        self._fork: Any = None
        self._box: Any = None
        self._mib = mib
        self._here = folder / f"{mib}MiB"
        self._back = folder / f"{type(kind).__name__}.out"
        if not self._here.exists():
            self._here.write_bytes(b"0123456789abcde\n" * (mib << 16))

    async def create(self) -> Values:
        """A guest, to the first output of a command; which ends untimed."""
        began = time.perf_counter()
        box = await self._first_output(self._kind.create())
        taken = _since(began)
        await self._kind.stop(box)
        return {"create": taken}

    async def _first_output(self, creating: Any) -> Any:
        box = await creating
        if await self._kind.run(box, "/bin/echo", "ready") != len("ready\n"):
            raise RuntimeError("its first output is not what was wanted")
        return box

    async def fork(self) -> Values:
        """The same of a guest that has run a command already."""
        kind: Any = self._kind
        if self._fork is None:
            box = await self._first_output(kind.create())
            self._fork = await kind.freeze(box)
            await kind.stop(box)
        began = time.perf_counter()
        box = await self._first_output(kind.fork(self._fork))
        taken = _since(began)
        await kind.stop(box)
        return {"fork": taken}

    async def four(self) -> Values:
        """To the first output of all; their memory at rest, of all processes; and their end."""
        before, began = pss(), time.perf_counter()
        boxes = await asyncio.gather(*(self._first_output(self._kind.create()) for _ in range(4)))
        created = _since(began)
        await asyncio.sleep(_IDLE)
        memory, began = pss() - before, time.perf_counter()
        await asyncio.gather(*(self._kind.stop(box) for box in boxes))
        return {"four": created, "pss": memory, "stop": _since(began)}

    async def exec(self) -> Values:
        """The median of some."""
        box, times = await self._kept(), []
        for _ in range(_EXECS):
            began = time.perf_counter()
            await self._kind.run(box, "/bin/true")
            times.append(_since(began))
        return {"exec": statistics.median(times)}

    async def streams(self) -> Values:
        """A file in, out, and printed."""
        box, there = await self._kept(), f"{DATA}/file"
        found = {}
        began = time.perf_counter()
        await self._kind.copy_in(box, self._here, there)
        found["in"] = self._speed(began)
        began = time.perf_counter()
        await self._kind.copy_out(box, there, self._back)
        found["out"] = self._speed(began)
        if self._back.stat().st_size != self._mib << 20:
            raise RuntimeError(f"{self._back.stat().st_size} bytes came out")
        began = time.perf_counter()
        if (count := await self._kind.run(box, "/bin/cat", there)) != self._mib << 20:
            raise RuntimeError(f"{count} bytes were printed")
        found["stdout"] = self._speed(began)
        return found

    async def _kept(self) -> Any:
        if self._box is None:
            self._box = await self._first_output(self._kind.create())
        return self._box

    def _speed(self, began: float) -> float:
        return self._mib / (time.perf_counter() - began)


def _since(began: float) -> float:
    return 1e3 * (time.perf_counter() - began)


def pss() -> float:
    """MiB of all processes, shared pages by how many share them."""
    total = 0
    for path in Path("/proc").glob("[0-9]*/smaps_rollup"):
        with suppress(OSError):
            total += next(
                (int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith("Pss:")), 0
            )
    return total / 1024


async def main(name: str, folder: str, release: str, mib: str) -> None:
    """Until its input ends."""
    loop, out = asyncio.get_running_loop(), sys.stdout
    sys.stdout = sys.stderr  # whatever else prints
    worker: Worker | None = None
    while measure := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
        try:
            if worker is None:
                worker = Worker(KINDS[name](Path(folder), release), Path(folder), int(mib))
            answer: dict[str, Any] = {"values": await getattr(worker, measure)()}
        except Exception as exc:  # whichever a peer has
            answer = {"failed": f"{type(exc).__name__}: {exc}"}
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    import uvloop

    uvloop.run(main(*sys.argv[1:]))
