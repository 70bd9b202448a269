"""Run by test_others_bytes.py, in a process whose memory is never what it was: the C library fills what it gives (GIVEN),
and what it takes back (FREED), with bytes that nobody else writes. A guest that finds a run of them was shown memory that was
another's.

    python -m tests.hostile.overwritten DIRECTORY WHAT      prints "found WHERE" for each, then "asked TIMES"
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
import time
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path

from aiovmm.devices.virtio.blk import BlkDevice, DiskImage
from aiovmm.devices.virtio.net import NetDevice
from aiovmm.devices.virtio.net.sockets import SocketBackend
from aiovmm.native import ffi
from aiovmm.pci.virtio_driver import VirtioPciDriver
from tests.hostile.case import ANY
from tests.hostile.cases import CASES, judge
from tests.hostile.rarer import RARER
from tests.hostile.rig import RAM, Rig, simulated_rig
from tests.hostile.targets import SECTOR, Target

__all__ = ["FREED", "GIVEN", "KINDS", "environment"]

FREED, GIVEN = 0xE3, 0x1C
_ALL = 1 << 30  # bytes: no piece is larger
_RUN = 8  # bytes: random ones (the entropy device's) are not so by chance
_IN, _OUT = 0, 1
_ASKED = ("requests", "chains") if os.environ.get("AIOVMM_THOROUGH") else ("requests",)


def environment() -> dict[str, str]:
    """For such a process: M_PERTURB, none of its memory by mmap, which would be zeros (mallopt(3)), and none by the thread's
    cache, which is not filled. The sanitizer's malloc, where tests run on that, has its own words for it."""
    fills = f"max_malloc_fill_size={_ALL}:malloc_fill_byte={GIVEN}:max_free_fill_size={_ALL}:free_fill_byte={FREED}"
    return {
        **os.environ,
        "ASAN_OPTIONS": ":".join(filter(None, [os.environ.get("ASAN_OPTIONS"), fills])),
        "MALLOC_PERTURB_": str(FREED),
        "MALLOC_MMAP_THRESHOLD_": str(1 << 25),
        "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0",
        "PYTHONMALLOC": "malloc",
    }


class _Odd(Target):
    """A disk whose file ends within a sector, in buffers that end where no sector does."""

    readable, room = (struct.pack("<IIQ", _IN, 0, 3),), (SECTOR, 1)
    direct, size = False, 128 * SECTOR - 100

    def __init__(self, place: Path) -> None:
        path = place / f"disk{time.monotonic_ns()}"
        path.write_bytes(bytes(self.size))
        self.device = BlkDevice(DiskImage.open(path, direct=self.direct))

    async def good(self, driver: VirtioPciDriver) -> None:
        for sector, sectors in ((127, 1), (120, 8), (0, 128), (1, 126)):
            read = await driver.request(0, [struct.pack("<IIQ", _IN, 0, sector)], [sectors * SECTOR - 1, 2])
            assert read == bytes(sectors * SECTOR + 1)
        assert await driver.request(0, [struct.pack("<IIQ", _OUT, 0, 127), bytes(100), bytes(412)], [1]) == b"\0"
        await driver.request(0, [struct.pack("<IIQ", _IN, 0, 128)], [SECTOR, 1])  # there is no such sector


class _Direct(_Odd):
    """By O_DIRECT, and so through buffers of our own."""

    direct, size = True, 128 * SECTOR


class _Receiver(Target):
    """A card that gets frames which are shorter than its buffers."""

    queue = 1
    readable = (bytes(12) + bytes(6) + b"\2\0\0\0\0\1" + b"\x88\xb5" + bytes(46),)

    def __init__(self, _place: Path) -> None:
        ours, self.peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.device = NetDevice(SocketBackend(ours))

    async def good(self, driver: VirtioPciDriver) -> None:
        for size in (14, 60, 1514):
            self.peer.send(bytes(size))
            assert await driver.request(0, [], [12, 100, 3000]) == bytes(10) + b"\1\0" + bytes(size)

    async def close(self) -> None:
        await super().close()
        self.peer.close()


class _Teller(_Receiver):
    """One that does show it: what this finds is found."""

    async def good(self, driver: VirtioPciDriver) -> None:
        stale = ffi.new_allocator(should_clear_after_alloc=False)("char[]", 512)
        self.peer.send(bytes(ffi.buffer(stale)))
        await driver.request(0, [], [12, 1000])


_MORE: dict[str, type[Target]] = {"odd": _Odd, "direct": _Direct, "receiver": _Receiver, "teller": _Teller}
KINDS = (*ANY, *_MORE)


def _found(rig: Rig) -> list[str]:
    memory = rig.memory.read(0, RAM)
    return [f"{at:#x}" for byte in (FREED, GIVEN) if (at := memory.find(bytes([byte]) * _RUN)) >= 0]


async def _asked(kind: str, place: Path, what: Callable[[Rig], Awaitable[None]], name: str) -> None:
    async with asyncio.timeout(60), simulated_rig(kind, place) as (rig, _errors):
        await what(rig)
        for where in _found(rig):
            print(f"found {name} {where}")


async def _good(rig: Rig) -> None:
    for _ in range(3):
        await rig.target.good(rig.driver)
    await rig.recovers()


async def _main(place: Path, kind: str) -> None:
    RARER.update(_MORE)
    times = count()
    await _asked(kind, place, _good, "good")
    next(times)
    for case in CASES:
        if case.target == kind and case.category in _ASKED:
            await _asked(kind, place, lambda rig, case=case: judge(case, rig), case.id)  # type: ignore[misc]
            next(times)
    print(f"asked {next(times)}")


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), sys.argv[2]))
