"""Runs of targets, each a libFuzzer process: a fresh corpus folder from what is kept, and a report of what came of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tests.fuzz.corpus import pack, unpack
from tests.fuzz.native_targets import CLANG, NATIVE, build
from tests.fuzz.targets import PYTHON, load
from tests.limits import HANGS

__all__ = ["ATHERIS", "Report", "commands", "run", "run_all"]

ATHERIS = find_spec("atheris") is not None
MAX_INPUT = dict.fromkeys(NATIVE, 768)
_EXECUTED = re.compile(r"stat::number_of_executed_units:\s*(\d+)|Done (\d+) (?:runs|in)|#(\d+)\s+DONE")
_COVERAGE = re.compile(r"cov: (\d+)")


@dataclass(frozen=True)
class Report:
    """Of one run. `failure`: what it ended with, or empty."""

    name: str
    executions: int
    edges: int
    seconds: float
    failure: str

    def __str__(self) -> str:
        verdict = self.failure or "nothing found"
        return (
            f"{self.name:16} {self.executions:>11,} executions  {self.edges:>5} edges  {self.seconds:6.0f} s  {verdict}"
        )


def commands(names: Sequence[str], place: Path) -> dict[str, list[str]]:
    """How each of these targets is called; those in C are built in `place`. Without clang or Atheris theirs are left out."""
    found = {name: [str(build(name, place))] for name in names if name in NATIVE and CLANG}
    if ATHERIS:
        found.update({name: [sys.executable, "-m", "tests.fuzz.drive", name] for name in names if name in PYTHON})
    return found


def run(name: str, command: list[str], place: Path, *bounds: str) -> Report:
    """`bounds` are libFuzzer's: -max_total_time=, -runs=. What it finds lies in `place`, as NAME-crash-... ."""
    corpus = place / f"{name}-corpus"
    unpack(name, corpus, load(name).SEEDS if name in PYTHON else ())
    options = [
        f"-max_len={MAX_INPUT.get(name, 4096)}",
        "-print_final_stats=1",
        f"-timeout={HANGS:.0f}",
        "-rss_limit_mb=4096",
    ]
    began = time.monotonic()
    log = place / f"{name}.log"
    with log.open("wb") as out:
        call = [*command, *options, *bounds, f"-artifact_prefix={place}/{name}-", str(corpus)]
        code = subprocess.run(call, stdout=out, stderr=subprocess.STDOUT, check=False).returncode
    text = log.read_text(errors="replace")
    executed = [int(number) for found in _EXECUTED.findall(text) for number in found if number]
    edges = _COVERAGE.findall(text)
    failure = "" if code == 0 else f"exit {code}, see {log}"
    return Report(name, max(executed, default=0), int(edges[-1]) if edges else 0, time.monotonic() - began, failure)


def run_all(
    names: Sequence[str], place: Path, seconds: float, executions: int = 0, *, keep: bool = False
) -> list[Report]:
    """All processors are in use for about `seconds`, shared evenly by the targets; or, with `executions`, until each target in C
    has had as many and each in Python, where one takes longer, a tenth. `keep`: put what was found into corpus/."""
    cores = len(os.sched_getaffinity(0))
    calls = commands(names, place)
    each = max(1, int(seconds * cores / max(1, len(calls))))

    def bound(name: str) -> str:
        if not executions:
            return f"-max_total_time={each}"
        return f"-runs={executions if name in NATIVE else max(1, executions // 10)}"

    def one(name: str) -> Report:
        report = run(name, calls[name], place, bound(name))
        print(report, flush=True)
        if keep and not report.failure:
            _merge(name, calls[name], place)
        return report

    with ThreadPoolExecutor(cores) as pool:
        return list(pool.map(one, calls))


def _merge(name: str, command: list[str], place: Path) -> None:
    """Atheris cannot start itself again, as a merge does: of its targets all is kept."""
    least = place / f"{name}-corpus"
    if name in NATIVE:
        corpus, least = least, place / f"{name}-least"
        least.mkdir(exist_ok=True)
        merge = [*command, "-merge=1", str(least), str(corpus)]
        subprocess.run(merge, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    pack(name, least)
