"""python -m tests.fuzz [--minutes N | --executions N] [--keep] [TARGET...]"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.fuzz.campaign import ATHERIS, run_all
from tests.fuzz.native_targets import CLANG, NATIVE
from tests.fuzz.targets import PYTHON


def main() -> int:
    """The exit code: 1 if something was found, whose input is then kept, or if nothing could be run."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--minutes", type=float, default=10, help="of all together, on all processors")
    parser.add_argument(
        "--executions",
        type=int,
        default=0,
        help="of each target in C, however long it takes; a tenth of those in Python",
    )
    parser.add_argument("--keep", action="store_true", help="replace the kept corpora by what this run has")
    parser.add_argument("--place", type=Path, help="where to work; else a temporary folder")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join([*NATIVE, *PYTHON]))
    options = parser.parse_args()
    if unknown := set(options.targets) - {*NATIVE, *PYTHON}:
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    if CLANG is None:
        print("clang is not there: targets in C are left out", file=sys.stderr)
    if not ATHERIS:
        print("Atheris is not there: targets in Python are left out", file=sys.stderr)
    place = options.place or Path(tempfile.mkdtemp(prefix="aiovmm-fuzz-"))
    place.mkdir(parents=True, exist_ok=True)
    reports = run_all(
        options.targets or [*NATIVE, *PYTHON], place, options.minutes * 60, options.executions, keep=options.keep
    )
    found = [report for report in reports if report.failure]
    if found:
        print(f"inputs and logs are in {place}")
    return bool(found) or not reports  # nothing that was looked at is no all-clear


if __name__ == "__main__":
    sys.exit(main())
