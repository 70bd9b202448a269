"""python -m tests.soak [--minutes N] [--seed N]"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

import uvloop

from tests.soak.run import soak


def main() -> int:
    """The exit code: 1 if something grew."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        grew = runner.run(soak(Path(place), options.minutes * 60, options.seed))
    for line in grew:
        print(f"grew: {line}")
    return bool(grew)


sys.exit(main())
