"""The eventfds that a back end signals, by what kind of interrupt the driver has."""

from __future__ import annotations

import asyncio
import os

from aiovmm.pci.msix import MsixTable
from aiovmm.pci.msix_lines import MsixVectors
from aiovmm.pci.services import Place
from aiovmm.pci.virtio_irq import ISR_QUEUE, IsrStatus, VirtioInterrupt
from aiovmm.testing.pci import RecordingServices
from aiovmm.vhost_user.lines import EventReader, call_fd
from aiovmm.virtqueue.config import NO_VECTOR
from tests.limits import HANGS


class Lines:
    """A function with two vectors, one queue."""

    def __init__(self, vector: int) -> None:
        self.services = RecordingServices(None)  # type: ignore[arg-type]  # nothing here reaches memory
        self.vectors = MsixVectors(MsixTable(2), self.services, "fs0", Place())
        self.changes = asyncio.Event()
        self.isr = IsrStatus(lambda _bits: self.changes.set())
        self.line = VirtioInterrupt(self.vectors, self.isr, ISR_QUEUE, lambda: vector)
        self.bridges: list[EventReader] = []

    def call_fd(self) -> int | None:
        return call_fd(self.line, self.bridges)

    def close(self) -> None:
        for bridge in self.bridges:
            bridge.close()
        self.vectors.close()
        self.services.close()


async def test_a_vector_has_an_eventfd_of_its_own() -> None:
    lines = Lines(1)
    lines.vectors.apply(lines.vectors.table.set_control(enabled=True, masked=False))
    assert lines.call_fd() == lines.services.lines[-1].fd
    assert lines.bridges == []
    lines.close()


async def test_a_driver_without_a_vector_polls() -> None:
    lines = Lines(NO_VECTOR)
    lines.vectors.apply(lines.vectors.table.set_control(enabled=True, masked=False))
    assert lines.call_fd() is None
    assert lines.bridges == []
    lines.close()


async def test_without_msix_the_signal_reaches_the_isr_by_the_loop() -> None:
    lines = Lines(NO_VECTOR)
    fd = lines.call_fd()
    assert fd is not None
    os.eventfd_write(fd, 1)
    await asyncio.wait_for(lines.changes.wait(), HANGS)
    assert lines.isr.read(0, 1) == bytes([ISR_QUEUE])
    lines.close()
