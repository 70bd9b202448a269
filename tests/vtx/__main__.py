"""`python -m tests.vtx [--cpus N] [--kvm-intel PARAMETERS] -- COMMAND...`"""

from __future__ import annotations

import argparse
import shlex
import sys

from .host import CannotRun, run

parser = argparse.ArgumentParser(prog="python -m tests.vtx", description="Run a command in a host with VT-x (Bochs).")
parser.add_argument("--cpus", type=int, default=1)
parser.add_argument("--kvm-intel", default="enable_apicv=0", help="the module's parameters (%(default)s)")
parser.add_argument("--timeout", type=float, default=1800, help="seconds (%(default)s)")
parser.add_argument("argv", nargs="+", metavar="COMMAND")
options = parser.parse_args()
try:
    ended = run(shlex.join(options.argv), cpus=options.cpus, parameters=options.kvm_intel, timeout=options.timeout)
except CannotRun as error:
    sys.exit(f"vtx: {error}")
print(ended.output, end="")
if ended.status is None:
    sys.exit(f"vtx: it ended without a result; the end of its console:\n{ended.console[-4000:]}")
sys.exit(ended.status)
