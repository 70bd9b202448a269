"""A virtio device of one's own: to Linux it is an entropy device, and what it gives are rolls of a dice.

python -m examples.custom_device vmlinuz initramfs.cpio      # reads a few from the guest's /dev/hwrng
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

from aiovmm import VM, PayloadConfig, VirtioDevice, VMConfig, architecture
from aiovmm.virtqueue import Queue


class Dice(VirtioDevice):
    """Fills every buffer that the guest offers with the digits 1 to 6."""

    device_id = 4  # VIRTIO 1.2 §5.4: one queue, buffers for the device to fill, no configuration
    name = "dice"
    queue_sizes = (16,)

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)

    async def run(self, queues: list[Queue], features: int) -> None:
        (queue,) = queues
        async for chain in queue:
            size = min(chain.room, 4096)  # the guest decides how much it asks for; we, how much we give
            chain.write(bytes(self._random.choices(b"123456", k=size)))
            queue.push(chain)


async def main(kernel: Path, initramfs: Path) -> str:
    """20 rolls, as a program in the guest gets them."""
    payload = PayloadConfig(kernel, initramfs, f"console={architecture.host().serial} quiet panic=-1")
    config = VMConfig(payload, rng=None)  # without the monitor's own entropy device
    async with VM(config, devices=[Dice()]) as vm:
        await vm.start()
        await vm.serial.expect(rb"[#$] ", timeout=120)
        vm.serial.write(b"head -c 20 /dev/hwrng; echo\n")
        rolls = await vm.serial.expect(rb"\n([1-6]{20})\r\n")
        await vm.stop()
        return rolls[1].decode()


if __name__ == "__main__":
    print(asyncio.run(main(*map(Path, sys.argv[1:]))))
