"""A pmem whose monitor is killed at any moment has all that its guest had stored before a flush that was answered.

The page cache outlives a process: what a computer that loses its power keeps is the host's file systems' promise to fsync(2),
which is called for each flush (test_pmem.py).
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from tests.devices.virtio.overlay.test_crash import SECTORS, run_and_kill, versions

SECTOR = 512
SIZE = 2 << 20
WRITER = """
import asyncio, random, struct, sys
from pathlib import Path
from aiovmm.config import PmemConfig
from aiovmm.devices.virtio.pmem import PmemDevice
from aiovmm.machine.device_memory import map_device_memory
from aiovmm.machine.parts import PluggedDevice
from aiovmm.memory import GuestMemory
from aiovmm.testing import Harness

async def main(path, first, seed):
    rand = random.Random(seed)
    device = PmemDevice.from_config(PmemConfig(file=path))
    async with Harness(device) as h:
        memory = GuestMemory.create([(0, 1 << 20)])
        map_device_memory(memory, [PluggedDevice("pmem0", device)], 1 << 30, 1 << 40)
        start = int.from_bytes(device.read_config(0, 8), "little")
        print("ready", flush=True)
        number = first
        while True:
            for _ in range(rand.randint(1, 6)):
                sector = rand.randrange(512)
                count = rand.randint(1, min(12, 512 - sector))
                print("w", number, sector, count, flush=True)
                for at in range(sector, sector + count):
                    with memory.slice(start + at * 512, 8) as view:
                        view[:] = number.to_bytes(8, "little")
                number += 1
            assert await h.request(0, [struct.pack("<I", 0)], [4]) == struct.pack("<i", 0)
            print("f", number - 1, flush=True)

asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
"""


def rounds(place: Path, count: int) -> None:
    """Killed so many times."""
    path = place / "pmem"
    path.write_bytes((bytes(8).ljust(SECTOR, b"#") * SECTORS).ljust(SIZE, b"\0"))
    sure, number, rand = [0] * SECTORS, 1, random.Random(count)
    for round_ in range(count):
        command = [sys.executable, "-c", WRITER, str(path), str(number), str(round_)]
        writes, flushed = run_and_kill(command, rand.randint(1, 80))
        may = [{version} for version in sure]
        for n, (sector, sectors) in sorted(writes.items()):
            for at in range(sector, sector + sectors):
                may[at] = {n} if n <= flushed else may[at] | {n}
        there = versions(path.read_bytes()[: SECTORS * SECTOR])
        assert not [(at, there[at], may[at]) for at in range(SECTORS) if there[at] not in may[at]]
        sure, number = there, max([number, *writes]) + 1
    assert max(sure) > 0, "nothing was ever written"


def test_killed_ten_times(tmp_path: Path) -> None:
    rounds(tmp_path, 10)


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_killed_two_hundred_times(tmp_path: Path) -> None:
    rounds(tmp_path, 200)
