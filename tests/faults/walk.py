"""python -m tests.faults.walk PLACE LIFE KIND:ERROR:EVERY...: with fault.c preloaded, live through one life again and again.

Another of its calls of a kind fails each time: the first, then each EVERYth from there. A neighbour runs all the time. Prints
a line for each life in which something was not as it has to be, and how many there were.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import tempfile
import threading
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from aiovmm import VM, VMState
from aiovmm.errors import AiovmmError
from tests.faults.library import Kind, arm, calls
from tests.faults.lives import LIVES
from tests.limits import HANGS
from tests.vm.guest import config, counts_on, until
from tests.vm.remains import Remains

SECONDS = HANGS  # a memory slot is changed in a grace period of the host's, which took 13 s of a machine with twenty busy threads
"""A life that has not ended by then hangs."""


class Walk:
    """See the module."""

    def __init__(self, life: Callable[[Path], Awaitable[None]], place: Path, kind: Kind, error: int) -> None:
        self._life, self._place, self._kind, self._error = life, place, kind, error
        self._unheard: list[str] = []
        asyncio.get_running_loop().set_exception_handler(self._hear)

    def _hear(self, _loop: asyncio.AbstractEventLoop, said: dict[str, object]) -> None:
        error = said.get("exception")
        where = traceback.extract_tb(error.__traceback__)[-3:] if isinstance(error, BaseException) else []
        self._unheard.append(f"{error or said.get('message')!r} at {[f'{f.filename}:{f.lineno}' for f in where]}")

    async def once(self, nth: int, remains: Remains) -> str:
        """What was not as it has to be, or nothing."""
        arm(self._kind, nth, self._error)
        told = ""
        try:
            async with asyncio.timeout(SECONDS):
                await self._life(self._place)
        except AiovmmError as exc:
            told = "" if str(exc) and "\n" not in str(exc) else f"an error that says nothing: {exc!r}"
        except TimeoutError:
            told = "it hangs"
        except BaseException as exc:
            told = f"raised {exc!r}"
        arm(-1, 0, 0)
        gc.collect()
        await asyncio.sleep(0)
        if self._unheard:
            told += f" nobody heard of {self._unheard}"
            self._unheard.clear()
        try:
            await remains.check()
        except AssertionError as exc:
            told += f" left behind: {exc}"
        return told

    async def count(self) -> int:
        """Calls of a life in which nothing fails."""
        arm(self._kind, 0, 0)
        await self._life(self._place)
        counted = calls()
        arm(-1, 0, 0)
        return counted


async def walk(place: Path, life: str, steps: list[tuple[Kind, int, int]]) -> None:
    """All of it."""
    lives = 0
    async with VM(config("x", name="neighbour")) as neighbour:
        await neighbour.start()
        for _ in range(2):  # what is made only once, and modules
            await LIVES[life](place)
        await until(lambda: any(thread.name == "aiovmm watchdog" for thread in threading.enumerate()))
        for kind, error, every in steps:
            found = Walk(LIVES[life], place, kind, error)
            count, remains = await found.count(), Remains.now()
            for nth in range(1, count + 1, every):
                lives += 1
                if told := await found.once(nth, remains):
                    print(f"{life}: call {nth} of {count} of {kind.name}, error {error}: {told}", flush=True)
                    remains = Remains.now()
                await counts_on(neighbour)
                assert neighbour.state is VMState.RUNNING
    print(f"lived {lives}", flush=True)


def _step(text: str) -> tuple[Kind, int, int]:
    kind, error, every = map(int, text.split(":"))
    return Kind(kind), error, every


def main() -> None:
    """See the module."""
    place, life, *steps = sys.argv[1:]
    with (
        tempfile.TemporaryDirectory(prefix="tests-") as own,  # where no other process's files come and go
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        tempfile.tempdir = own
        runner.run(walk(Path(place), life, [_step(step) for step in steps]))


if __name__ == "__main__":
    main()
