"""A process that has limited itself: no core file, no more descriptors, and nothing is raised again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, resource, sys
from aiovmm.confine.limits import limit_resources
from aiovmm.confine.seccomp import confine_calls

resource.setrlimit(resource.RLIMIT_NOFILE, (200, 400))
if sys.argv[1:]:
    os.setresuid(*[int(sys.argv[1])] * 3)
limit_resources()
for name in ("CORE", "NOFILE", "NPROC"):
    print(name, *resource.getrlimit(getattr(resource, f"RLIMIT_{name}")))
confine_calls()
try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 400))
except (OSError, ValueError) as exc:
    print("refused", exc)
"""


def limits(*user: str) -> dict[str, list[str]]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *user], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return {name: rest for name, *rest in map(str.split, done.stdout.splitlines())}


def test_limits_are_low_and_stay_so() -> None:
    found = limits()
    assert found["CORE"] == ["0", "0"]
    assert found["NOFILE"] == ["200", "200"]
    assert "refused" in found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_who_is_not_root_has_so_many_threads() -> None:
    assert 0 < int(limits("4321")["NPROC"][1]) <= 4096
