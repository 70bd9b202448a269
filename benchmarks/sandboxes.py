"""Sandboxes beside boxlite's and microsandbox's: creation, commands, streams, memory. `agent` has the streams beside raw ones.

Each is in a process of its own, and has one guest of each measure that does not count. A peer that is not there, or fails at
something, is left out from there on, and the rows say why. The peers' streams are shorter: they have less throughput.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from benchmarks import sandbox_root
from benchmarks.harness import Options, Result, Target, progress
from benchmarks.peers import PLACE
from benchmarks.sandbox_kinds import KINDS, OURS

NESTED = True
PEERS = tuple(name for name in KINDS if name != OURS)
LIMIT = 400.0  # seconds of one measure
_MOST, _LEAST = Target(1.0), Target(10.0, most=False)
_REASON = 300  # characters


@dataclass(frozen=True)
class Row:
    """A value of a measure's, and what it is called."""

    key: str
    name: str
    unit: str
    target: Target


MEASURES: Mapping[str, Sequence[Row]] = {
    "create": [Row("create", "create to first output", "ms", Target(0.8))],
    "fork": [Row("fork", "a warm fork to first output, beside create", "ms", Target(0.1))],
    "four": [
        Row("four", "4 at once to first output", "ms", _MOST),
        Row("pss", "PSS of 4 idle", "MiB", _MOST),
        Row("stop", "stop of 4", "ms", _MOST),
    ],
    "exec": [Row("exec", "a further exec of /bin/true", "ms", Target(0.5))],
    "streams": [
        Row("in", "file copied in", "MiB/s", _LEAST),
        Row("out", "file copied out", "MiB/s", _LEAST),
        Row("stdout", "stdout", "MiB/s", _LEAST),
    ],
}
_OURS_ALONE = {"fork": "create"}
"""What the peers do not have, and what theirs is compared with."""


class Failed(Exception):
    """It cannot be measured; why."""


class Contestant:
    """A worker, see sandbox_worker."""

    def __init__(self, name: str, folder: Path, options: Options) -> None:
        self.name = name
        self.reason = ""
        """Why it is left out, if it is."""
        self._errors = folder / f"{name}.log"
        mib = options.pick(64 if name == OURS else 8, 1)
        command = [sys.executable, "-m", "benchmarks.sandbox_worker", name, folder, options.release, mib]
        paths = [str(PLACE), os.environ.get("PYTHONPATH", "")]
        own = {"PYTHONPATH": ":".join(filter(None, paths)), "XDG_CACHE_HOME": f"{folder}/cache"}
        own |= {"HOME": f"{folder}/home", "MSB_HOME": f"{folder}/msb", "BOXLITE_HOME": f"{folder}/boxlite"}
        with open(self._errors, "wb") as errors:
            self._process = subprocess.Popen(
                [*map(str, command)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **own},
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """With all that it has begun and that is of its session."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def measure(self, what: str) -> dict[str, float]:
        """Raises Failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{what}\n".encode())
            self._process.stdin.flush()
            ready, _, _ = select.select([self._process.stdout], [], [], LIMIT)
            if not ready:
                raise Failed(f"no answer within {LIMIT:g} s")
            answer = json.loads(self._process.stdout.readline())
        except (BrokenPipeError, ValueError) as exc:
            raise Failed(f"its process has ended: {self._said()}") from exc
        if "failed" in answer:
            raise Failed(answer["failed"][:_REASON])
        return dict(answer["values"])

    def _said(self) -> str:
        return self._errors.read_text(errors="replace").strip()[-_REASON:] or "it said nothing"


def run(options: Options) -> Iterator[Result]:
    """All rows."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name, ExitStack() as stack:
        folder = Path(name)
        sandbox_root.make(folder)
        (folder / "home").mkdir()
        contestants = [stack.enter_context(Contestant(name, folder, options)) for name in KINDS]
        done: dict[str, Result] = {}
        for what, rows in MEASURES.items():
            if any(options.wants(row.name) for row in rows):
                for key, result in _measured(what, rows, contestants, options.rounds).items():
                    done[key] = result
                    _compare(result, done.get(_OURS_ALONE.get(what, "")), contestants)
                    yield result


def _measured(what: str, rows: Sequence[Row], contestants: Sequence[Contestant], rounds: int) -> dict[str, Result]:
    """In turn, after a first time that does not count. Raises Failed if ours does."""
    results = {row.key: Result(row.name, row.unit, OURS, PEERS, row.target) for row in rows}
    for number in range(-1, rounds):
        for one in contestants:
            if one.reason or (what in _OURS_ALONE and one.name != OURS):
                continue
            try:
                values = one.measure(what)
            except Failed as exc:
                if one.name == OURS:
                    raise
                one.reason = f"{what}: {exc}"
                print(f"{one.name} is left out: {one.reason}", file=sys.stderr, flush=True)
                continue
            for key, value in values.items() if number >= 0 else ():
                results[key].add(one.name, value)
                progress(results[key], number, rounds, one.name, value)
    return results


def _compare(result: Result, other: Result | None, contestants: Sequence[Contestant]) -> None:
    """With the peers' samples of another row, where they have none; without a peer there is no target, and the row says why."""
    if other is not None:
        result.samples |= {name: samples for name, samples in other.samples.items() if name != OURS}
    result.notes |= {f"{one.name} is left out": one.reason for one in contestants if one.reason}
    if result.peer is None:
        result.target = None
