"""The model of VFIO, and a device of it on a PCI bus without KVM."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from aiovmm.memory import GuestMemory
from tests.vfio.guest import ADDRESS, Guest, plug
from tests.vfio.kernel import FakeKernel


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[FakeKernel]:
    kernel = FakeKernel(tmp_path)
    yield kernel
    kernel.dispose()


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory.create([(0, 1 << 20)])
    yield memory
    memory.close()


@pytest.fixture
async def guest(kernel: FakeKernel, memory: GuestMemory) -> AsyncIterator[Guest]:
    guest = await plug(kernel, memory, kernel.add(ADDRESS))
    yield guest
    await guest.root.close()
    guest.host.close()
    assert not kernel.open_fds
    assert not guest.services.slots
    assert all(line.closed for line in guest.services.lines)
