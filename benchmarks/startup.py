"""How long `import aiovmm` and `aiovmm run --help` take, against `python -c pass`.

Whole processes, from exec to their end.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

from benchmarks.guest import aiovmm_program
from benchmarks.harness import Options, Result, Target, run_rounds

FLOOR = "python -c pass"


def run(options: Options) -> Iterator[Result]:
    """All rows, in milliseconds."""
    python = [sys.executable, "-c"]
    rows: dict[str, tuple[Sequence[str], Target | None]] = {
        "import aiovmm": ([*python, "import aiovmm"], Target(1.0, 120)),
        "from aiovmm import VM": ([*python, "from aiovmm import VM"], None),
        "aiovmm run --help": ([*aiovmm_program(), "run", "--help"], Target(1.0, 200)),
    }
    for name, (command, target) in rows.items():
        if options.wants(name):
            result = Result(name, "ms", name, (FLOOR,), target)
            contestants = {
                FLOOR: lambda: process([*python, "pass"]),
                name: lambda c=command: process(c),  # type: ignore[misc]
            }
            yield run_rounds(result, contestants, options.pick(2 * options.rounds, options.rounds))


def process(command: Sequence[str], env: Mapping[str, str] | None = None) -> float:
    """Milliseconds of its life."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=env) as process:
        ended = os.pidfd_open(process.pid)  # `run` with a timeout looks for the end every now and then, which shows
        try:
            select.select([ended], [], [], 60)
        finally:
            os.close(ended)
        took = time.perf_counter() - began
        process.kill()
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return 1e3 * took
