"""A program that may not use io_uring serves a disk: `refuse_io_uring.py ERRNO LOOP IMAGE` prints what does its I/O."""

from __future__ import annotations

import asyncio
import ctypes
import struct
import sys

import uvloop

from aiovmm.devices.virtio.blk import BlkDevice, DiskImage
from aiovmm.testing import Harness

_SETUP = 425  # io_uring_setup, the same number on every architecture
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


def refuse(number: int) -> None:
    """Have io_uring_setup fail with `number` from now on (seccomp(2))."""
    program = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (0x20, 0, 0, 0),  # load the system call's number
            (0x15, 0, 1, _SETUP),  # is it that one?
            (0x06, 0, 0, _ERRNO | number),
            (0x06, 0, 0, _ALLOW),
        )
    )
    buffer = ctypes.create_string_buffer(program)
    fprog = struct.pack("@HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")
    holder = ctypes.create_string_buffer(fprog)
    if libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(holder), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


async def main(path: str) -> None:
    disk = BlkDevice(DiskImage.open(path))
    async with Harness(disk) as h:
        print(disk.io.value)
        assert await h.request(0, [struct.pack("<IIQ", 0, 0, 1)], [512, 1]) == b"d" * 512 + b"\0"
        assert await h.request(0, [struct.pack("<IIQ", 1, 0, 1), b"w" * 512], [1]) == b"\0"
        assert await h.request(0, [struct.pack("<IIQ", 4, 0, 0)], [1]) == b"\0"


if __name__ == "__main__":
    refuse(int(sys.argv[1]))
    if sys.argv[2] == "uvloop":
        uvloop.run(main(sys.argv[3]))
    else:
        asyncio.run(main(sys.argv[3]))
