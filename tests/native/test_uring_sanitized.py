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
    program = tmp_path_factory.mktemp("blk") / "blk_fuzz"
    sources = [
        HERE / "blk_fuzz.c",
        *SOURCE.glob("blk*.c"),
        *(SOURCE / f"{name}.c" for name in ("uring", "ring", "mem")),
    ]
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command = ["gcc", *FLAGS, *sanitize, "-I", str(SOURCE), "-o", str(program), *map(str, sources)]
    subprocess.run(command, check=True, timeout=60)
    return program


@pytest.mark.parametrize("seed", range(1, 9))
def test_every_chain_comes_back_once_whatever_the_guest_does(fuzz: Path, tmp_path: Path, seed: int) -> None:
    returned, malformed, errors, _ = run(fuzz, seed, 2000, tmp_path / "image")
    assert returned > 4000
    assert malformed > 70
    assert errors > 300
