"""The native data path of the disk alone, compiled with sanitizers and given hostile guests."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.native.test_ring_sanitized import FLAGS, HERE, SOURCE, run

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("blk"), "address,undefined")


def built(place: Path, sanitizer: str) -> Path:
    program = place / "blk_fuzz"
    sources = [
        HERE / "blk_fuzz.c",
        *SOURCE.glob("blk*.c"),
        *(SOURCE / f"{name}.c" for name in ("uring", "ring", "ring_chain", "ring_record", "mem")),
    ]
    sanitize = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    command = ["gcc", *FLAGS, *sanitize, "-I", str(SOURCE), "-o", str(program), *map(str, sources)]
    subprocess.run(command, check=True, timeout=60)
    return program


@pytest.mark.parametrize("seed", range(1, 9))
def test_every_chain_comes_back_once_whatever_the_guest_does(fuzz: Path, tmp_path: Path, seed: int) -> None:
    """Each round waits for kernel threads some times, which on a busy machine is for their turn."""
    returned, malformed, errors, _ = run(fuzz, seed, 500, tmp_path / "image")
    assert returned > 1000
    assert malformed > 15
    assert errors > 75


@pytest.mark.parametrize("seed", [1, 2])  # over an overlay, and not
def test_threads_that_perform_requests_race_with_nothing(seed: int, tmp_path: Path) -> None:
    returned, malformed, errors, ring = run(built(tmp_path, "thread"), seed, 600, tmp_path / "image", "threads")
    assert returned > 1000
    assert malformed > 10
    assert errors > 50
    assert ring == 0
