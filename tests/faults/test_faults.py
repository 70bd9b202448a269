"""Any call of the host may fail, once: an error that is clear, or that the guest is told of. Nothing is left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aiovmm.errors import KvmError
from aiovmm.kvm import Kvm
from tests.faults.library import ERRORS, SHORT, Kind, build
from tests.faults.lives import LIVES
from tests.vm.guest import config

pytestmark = [pytest.mark.kvm, pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")]

ROOT = Path(__file__).resolve().parents[2]
OF_PYTHON = ("Exception ignored in thread started by", "MemoryError: ")
"""Said of a thread that had no memory to begin with, by the interpreter; then nobody's code can be called any more."""
EVERY = {Kind.IOCTL: 3, Kind.PREAD: 40, Kind.OPEN: 4}
"""Of these kinds there are many: `make test` has a part of them."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        Kvm.open().close()
    except KvmError as exc:
        pytest.skip(f"/dev/kvm cannot be used: {exc}")
    return build(tmp_path_factory.mktemp("faults"))


def walk(library: Path, place: Path, life: str, steps: list[tuple[Kind, int, int]]) -> int:
    """Lives that were lived; all as they have to be."""
    words = [f"{kind.value}:{error}:{every}" for kind, error, every in steps]
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.walk", str(place), life, *words],
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    *told, last = done.stdout.splitlines()
    assert not told, "\n".join(told)
    assert not [line for line in done.stderr.splitlines() if not line.startswith(OF_PYTHON)]
    return int(last.removeprefix("lived "))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("life", LIVES)
def test_a_call_fails(life: str, library: Path, tmp_path: Path) -> None:
    sparse = 4 if life == "snapshot" else 1  # it is two guests and their files
    steps = [(kind, errors[0], sparse * EVERY.get(kind, 2)) for kind, errors in ERRORS.items()]
    steps += [(kind, SHORT, sparse * EVERY.get(kind, 2)) for kind, errors in ERRORS.items() if SHORT in errors]
    assert walk(library, tmp_path, life, steps) >= 8


@pytest.mark.thorough
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("life", LIVES)
@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.name.lower())
def test_each_call_fails_in_each_way(kind: Kind, life: str, library: Path, tmp_path: Path) -> None:
    walk(library, tmp_path, life, [(kind, error, 1) for error in ERRORS[kind]])


RUNS = {Kind.OPEN: 3, Kind.IOCTL: 2, Kind.MMAP: 2, Kind.EVENTFD: 1, Kind.THREAD: 1, Kind.MEMFD: 1, Kind.SOCKET: 1}


@pytest.mark.parametrize("kind", RUNS, ids=lambda kind: kind.name.lower())
def test_the_command_says_in_a_line_what_failed(kind: Kind, library: Path, tmp_path: Path) -> None:
    """`aiovmm run`: from when /dev/kvm is opened."""
    kernel = config("o").payload.kernel
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    command = [sys.executable, "-m", "aiovmm", "run", "--kernel", str(kernel), "--cmdline", "o", "--memory", "4M"]
    command += ["--disk", f"path={tmp_path}/disk", "--serial", "null", "--console", "null"]
    for nth in range(1, 6 * RUNS[kind], RUNS[kind]):
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "LD_PRELOAD": str(library), "AIOVMM_FAULT": f"{kind.value} {nth} {ERRORS[kind][0]}"},
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert "Traceback" not in done.stderr, (nth, done.stderr)
        assert done.returncode in (0, 1), (nth, done)
        assert done.returncode == 0 or done.stderr.startswith("aiovmm"), (nth, done)
