"""Which memory a machine gets: private unless somebody needs it shared, or says so."""

from __future__ import annotations

from typing import ClassVar

import pytest

from aiovmm import VM, MemoryConfig, VirtioDevice
from aiovmm.virtqueue.queue import Queue
from tests.vm import guest


class Served(VirtioDevice):
    """A device that another process would serve."""

    device_id: ClassVar[int] = 42
    shares_memory = True

    async def run(self, queues: list[Queue], features: int) -> None:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("shared", "devices", "expected"),
    [(None, [], False), (None, [Served], True), (True, [], True), (False, [], False)],
)
async def test_memory_is_shared_where_it_has_to_be(
    shared: bool | None, devices: list[type[VirtioDevice]], expected: bool
) -> None:
    config = guest.config("h", memory=MemoryConfig(4 << 20, shared=shared))
    async with VM(config, devices=[make() for make in devices]) as vm:
        assert {region.shared for region in vm.machine.memory.regions} == {expected}
