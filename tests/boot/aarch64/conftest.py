from __future__ import annotations

from collections.abc import Iterator

import pytest

from aiovmm.boot.aarch64 import ram_ranges
from aiovmm.memory import GuestMemory


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    """A guest's RAM of 64 MiB."""
    memory = GuestMemory.create(ram_ranges(64 << 20))
    yield memory
    memory.close()
