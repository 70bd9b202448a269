"""The extension as it was built: what an overrun of memory in it is met by."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

import aiovmm.native
from aiovmm.memory import GuestMemory


@pytest.fixture(scope="module")
def file() -> str:
    """The extension of the tree, even where the one that is loaded is the sanitizers'."""
    (path,) = Path(aiovmm.native.__file__).parent.glob("_native*.so")
    return str(path)


def read(what: str, path: str) -> str:
    return subprocess.run(["readelf", "-W", what, path], capture_output=True, text=True, check=True).stdout


def test_tables_of_addresses_are_bound_at_the_start_and_read_only(file: str) -> None:
    assert "GNU_RELRO" in read("--program-headers", file)
    assert re.search(r"BIND_NOW|FLAGS_1.*NOW", read("--dynamic", file))


def test_the_stack_is_guarded_and_not_executable(file: str) -> None:
    assert "__stack_chk_fail" in read("--dyn-syms", file)
    assert re.search(r"GNU_STACK.* RW ", read("--program-headers", file))


def test_copies_are_checked(file: str) -> None:
    assert re.search(r"__\w+_chk\b", read("--dyn-syms", file).replace("__stack_chk_fail", ""))


@pytest.mark.parametrize("shared", [False, True])
def test_memory_of_guests_is_in_no_core_file(shared: bool) -> None:
    memory = GuestMemory.create([(0, 1 << 20)], shared=shared)
    try:
        host = memory.regions[0].host
        with open("/proc/self/smaps") as smaps:
            entries = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", smaps.read())
        spans = [(entry, [int(end, 16) for end in entry.split()[0].split("-")]) for entry in entries if entry]
        mine = next(entry for entry, (start, end) in spans if start <= host < end)
        flags = next(line for line in mine.splitlines() if line.startswith("VmFlags")).split()
        assert "dd" in flags, os.linesep.join(flags)
    finally:
        memory.close()
