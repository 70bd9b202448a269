"""The pool over machines: its tests are in a process of their own, where Ray's threads and descriptors end with them."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.kvm, pytest.mark.timeout(400)]
ROOT = Path(__file__).parent.parent.parent


def test_a_pool_over_two_nodes() -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed here: pip install 'aiovmm[cluster]'")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/examples/ray_cluster.py"]
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, timeout=360, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    if (skipped := re.search(r"^SKIPPED \[\d+\] \S+: (.*)", done.stdout, re.MULTILINE)) is not None:
        pytest.skip(skipped.group(1))
    assert " passed" in done.stdout.splitlines()[-1]
