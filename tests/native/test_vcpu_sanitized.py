"""The native run loop alone, under the thread sanitizer and the address sanitizer, against a made-up KVM (vcpu_race.c)."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import aiovmm.native

HERE = Path(__file__).resolve().parent
SOURCE = Path(aiovmm.native.__file__).resolve().parent / "src"
PARTS = (
    "vcpu.c",
    "vcpu_access.c",
    "vcpu_ring.c",
    "vcpu_thread.c",
    "x86_64/paging.c",
    "x86_64/exits.c",
    "drain.c",
    "pace.c",
)
FLAGS = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", "-pthread", "-Dioctl=fake_ioctl"]


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
@pytest.mark.parametrize("look_ns", [0, 2000])
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_order_answers_pauses_and_stops_amid_changing_tables(sanitizer: str, look_ns: int, tmp_path: Path) -> None:
    program = tmp_path / "vcpu_race"
    sanitize = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    sources = [str(HERE / "vcpu_race.c"), *(str(SOURCE / name) for name in PARTS)]
    subprocess.run(
        ["gcc", *FLAGS, *sanitize, "-I", str(SOURCE), "-I", str(SOURCE / "x86_64"), "-o", str(program), *sources],
        check=True,
        timeout=60,
    )
    # The thread sanitizer needs its shadow where address randomization may put a library: off.
    fixed = ["setarch", "-R"] if shutil.which("setarch") else []
    # The tables that are in force at the end are left to the end of the process.
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    command = [*fixed, str(program), "20000", str(look_ns)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False, env=environment)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr[-4000:]


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_what_holds_up_the_host_is_counted_and_paced_and_a_lost_guest_ends(tmp_path: Path) -> None:
    program = tmp_path / "vcpu_harm"
    sources = [str(HERE / "vcpu_harm.c"), *(str(SOURCE / name) for name in PARTS)]
    flags = [*FLAGS, "-Dsyscall=fake_syscall", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    include = ["-I", str(SOURCE), "-I", str(SOURCE / "x86_64")]
    subprocess.run(["gcc", *flags, *include, "-o", str(program), *sources], check=True, timeout=60)
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr[-4000:]
