"""The disk behind virtio-pci, without KVM: a driver that comes, works, and goes again with requests in flight."""

from __future__ import annotations

import os
from pathlib import Path

from aiovmm.devices.virtio.blk import BlkDevice, DiskImage
from aiovmm.devices.virtio.blk.protocol import Request
from aiovmm.memory import GuestMemory
from aiovmm.pci.driver import PciDriver
from aiovmm.pci.plan import Window, plan_segments
from aiovmm.pci.segment import PciSegment
from aiovmm.pci.virtio import VirtioPci
from aiovmm.pci.virtio_driver import VirtioPciDriver
from aiovmm.testing.pci import ECAM_BASE, MMIO32, RecordingServices
from aiovmm.virtqueue.driver import Arena
from tests.devices.virtio.blk_driver import contents, header
from tests.open_files import descriptors

PLAN = plan_segments(1, ECAM_BASE, MMIO32, Window(4 << 30, 64 << 30))[0]


async def test_a_driver_is_loaded_and_unloaded_a_hundred_times(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(os.urandom(1 << 20))
    memory = GuestMemory.create([(0, 16 << 20)])
    services = RecordingServices(memory)
    segment = PciSegment(PLAN, services)
    disk = BlkDevice(DiskImage.open(path), num_queues=2)
    await disk.open()
    errors: list[Exception] = []
    slot = segment.add(VirtioPci(disk, services, on_error=lambda _, error: errors.append(error)))
    pci = PciDriver(services, PLAN.ecam_base)
    fds = 0
    for turn in range(100):
        driver = VirtioPciDriver(services, memory, pci, slot, Arena(0x1000, 8 << 20))
        await driver.probe()
        await driver.start()
        for queue in range(2):
            answer = await driver.request(queue, [header(Request.IN, 8 * queue)], [4096, 1])
            assert answer == contents(path)[4096 * queue : 4096 * (queue + 1)] + b"\0"
        for i in range(8):
            driver.queues[0].add([header(Request.IN, 8 * i)], [4096, 1])
        driver.queues[0].kick()
        await driver.reset()
        if turn == 1:
            fds = descriptors()
    assert descriptors() <= fds
    assert not errors
    await segment.close()
    await disk.close()
    services.close()
    memory.close()
