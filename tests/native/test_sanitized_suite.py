"""`make test-sanitized` runs what it says: the extension with the sanitizers in every process, or freed memory overwritten."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROBE = """
import os, subprocess, sys
from aiovmm.native import ffi, owners

FREED = '''
from aiovmm.native import ffi, lib
wholes = [ffi.new("struct avmm_queue *") for _ in range(64)]
parts = [ffi.addressof(whole[0], "used") for whole in wholes]
del wholes
print([hex(part.skew) for part in parts], flush=True)
print(bytes(ffi.buffer(parts[0])).hex())
'''

def test_freed_memory_is_noticed():
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True)
    kind = os.environ["EXPECTED"]
    if kind == "address":
        maps = open("/proc/self/maps").read()
        assert "/build/sanitized/lib/aiovmm/native/_native" in maps and "libasan" in maps
        assert "heap-use-after-free" in done.stderr, done.stderr
    else:
        assert "dddd" in done.stdout or "a5a5" in done.stdout, done
"""


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", ["address", "perturb"])
def test_the_run_notices_freed_memory(kind: str, tmp_path: Path) -> None:
    probe = tmp_path / "test_probe.py"
    probe.write_text(PROBE)
    command = [str(ROOT / "tools/test-sanitized"), kind, str(probe), "-p", "no:cacheprovider"]
    environment = {**os.environ, "EXPECTED": kind}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=170, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "1 passed" in done.stdout
