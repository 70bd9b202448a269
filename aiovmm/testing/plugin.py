"""pytest fixtures for those who write devices. In your conftest.py: `pytest_plugins = ["aiovmm.testing.plugin"]`.

    async def test_my_device(virtio_harness):
        h = await virtio_harness(MyDevice())
        assert await h.request(0, [b"question"], [64]) == b"answer"

`virtio_harness` needs pytest-asyncio; without it, use `aiovmm.testing.Harness` as the context manager that it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import pytest_asyncio

from aiovmm.irq import RecordingLine
from aiovmm.memory import GuestMemory
from aiovmm.virtqueue.device import VirtioDevice
from aiovmm.virtqueue.harness import Harness

__all__ = ["guest_memory", "recording_line", "virtio_harness"]


@pytest.fixture
def guest_memory() -> Iterator[GuestMemory]:
    """64 MiB of guest memory from address 0."""
    memory = GuestMemory.create([(0, 64 << 20)])
    yield memory
    memory.close()


@pytest.fixture
def recording_line() -> RecordingLine:
    """An interrupt line that counts."""
    return RecordingLine()


@pytest_asyncio.fixture
async def virtio_harness() -> AsyncIterator[Callable[..., Awaitable[Harness]]]:
    """`await virtio_harness(device, **options)` is an entered `Harness`; all are left at the end of the test, which fails
    with the device's error if there is one that the test has not looked for."""
    async with contextlib.AsyncExitStack() as stack:

        async def enter(device: VirtioDevice, **options: Any) -> Harness:
            return await stack.enter_async_context(Harness(device, **options))

        yield enter
