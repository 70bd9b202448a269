"""What embedders test their devices with: the guest's side of virtqueues, and interrupt lines that record.

async with Harness(MyDevice()) as h:
    assert await h.request(0, [b"question"], [64]) == b"answer"
"""

from __future__ import annotations

from aiovmm.irq import RecordingLine
from aiovmm.virtqueue.driver import Arena, Descriptor, DriverQueue, Used, WaitLine
from aiovmm.virtqueue.harness import Harness

__all__ = ["Arena", "Descriptor", "DriverQueue", "Harness", "RecordingLine", "Used", "WaitLine"]
