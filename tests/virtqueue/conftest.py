"""Fixtures of the ring tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aiovmm.memory import GuestMemory


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory.create([(0, 1 << 20)])
    yield memory
    memory.close()
