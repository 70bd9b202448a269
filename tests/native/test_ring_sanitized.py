"""The native ring code alone, compiled with sanitizers and driven from C: hostile input, and two threads at full speed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import aiovmm.native

HERE = Path(__file__).resolve().parent
SOURCE = Path(aiovmm.native.__file__).resolve().parent / "src"
FLAGS = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", "-pthread"]

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


def compile_c(folder: Path, name: str, *flags: str) -> Path:
    program = folder / name
    sources = [
        HERE / f"{name}.c",
        *(SOURCE / f"{part}.c" for part in ("stream", "ring", "ring_chain", "ring_record", "mem", "guard")),
    ]
    command = ["gcc", *FLAGS, *flags, "-I", str(SOURCE), "-o", str(program), *map(str, sources)]
    subprocess.run(command, check=True, timeout=60)
    return program


def run(program: Path, *arguments: object) -> list[int]:
    done = subprocess.run(
        [str(program), *map(str, arguments)], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [int(word) for word in done.stdout.split()]


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    return compile_c(tmp_path_factory.mktemp("ring"), "ring_fuzz", *sanitize)


@pytest.fixture(scope="module")
def race(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_c(tmp_path_factory.mktemp("ring"), "ring_race", "-O2")


@pytest.fixture(scope="module")
def printer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_c(tmp_path_factory.mktemp("ring"), "ring_print", "-O2")


@pytest.mark.parametrize("seed", range(1, 7), ids=lambda s: f"{s}-{'hostile' if s % 2 else 'quiet'}")
def test_random_rings_never_lead_outside_memory(fuzz: Path, seed: int) -> None:
    bound, taken, *refused = run(fuzz, seed, 20_000)
    assert bound > 1000
    assert taken > 500
    assert all(refused), f"the input did not reach every refusal: {refused}"


@pytest.mark.parametrize("size", [2, 8, 64])
@pytest.mark.parametrize("event_idx", [0, 1])
def test_no_wake_up_is_lost_between_two_threads(race: Path, event_idx: int, size: int) -> None:
    chains = 400_000
    kicks, interrupts = run(race, event_idx, size, chains)
    assert 0 < kicks <= chains
    assert 0 < interrupts <= chains


@pytest.mark.parametrize("event_idx", [0, 1])
def test_output_of_a_driver_that_spins_arrives_in_order_and_without_its_doorbell(printer: Path, event_idx: int) -> None:
    chains = 5_000
    sleeps, kicks, found, _ = run(printer, event_idx, 0, chains, 500)
    assert 0 < kicks <= chains
    assert sleeps > 0
    assert found == 0
    if len(os.sched_getaffinity(0)) > 1:
        _, kicks, found, _ = run(printer, event_idx, 1_000_000, chains, 500)
        assert found > chains // 2  # were it not for the pauses, and for other work of the machine, nearly all
        assert kicks < chains // 2


def test_looking_for_output_ends_when_it_is_vain(printer: Path) -> None:
    """Each chain comes 2 ms after the last."""
    sleeps, kicks, found, _ = run(printer, 1, 50_000, 100, 1)
    assert found < 20
    assert kicks > 80
    assert sleeps > 80
