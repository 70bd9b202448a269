from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aiovmm.boot.x86_64 import ram_ranges
from aiovmm.memory import GuestMemory
from tests.boot.acpica import Acpica, installed


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def put(tmp_path: Path) -> Callable[[bytes], Path]:
    """Write bytes to a file and get its path."""

    def write(data: bytes, name: str = "kernel") -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    """A guest's RAM of 64 MiB."""
    memory = GuestMemory.create(ram_ranges(64 << 20))
    yield memory
    memory.close()


@pytest.fixture
def acpica(tmp_path: Path) -> Acpica:
    if not installed():
        pytest.skip("iasl and acpiexec are not installed: apt-get install acpica-tools")
    return Acpica(tmp_path)
