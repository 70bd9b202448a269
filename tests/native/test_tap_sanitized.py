"""The native network code alone, compiled with sanitizers: frames and chains of every shape, over every kind of descriptor."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import aiovmm.native

HERE = Path(__file__).resolve().parent
SOURCE = Path(aiovmm.native.__file__).resolve().parent / "src"
FLAGS = "-std=gnu11 -O1 -g -Wall -Wextra -Werror -D_GNU_SOURCE -fsanitize=address,undefined -fno-sanitize-recover=all"

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("tap") / "tap_fuzz"
    sources = [
        str(HERE / "tap_fuzz.c"),
        str(SOURCE / "nowait.c"),
        str(SOURCE / "guard.c"),
        *map(str, SOURCE.glob("tap_*.c")),
    ]
    subprocess.run(["gcc", *FLAGS.split(), "-I", str(SOURCE), "-o", str(program), *sources], check=True, timeout=60)
    return program


@pytest.mark.parametrize("seed", range(1, 5))
def test_frames_never_lead_outside_their_buffers(fuzz: Path, seed: int) -> None:
    done = subprocess.run([str(fuzz), str(seed), "1500"], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert all(int(word) > 100 for word in done.stdout.split()), "the input did not reach every outcome"
