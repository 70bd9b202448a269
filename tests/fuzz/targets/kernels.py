"""Kernel files of both architectures: an image, or an ImageError that names the file."""

from __future__ import annotations

import os

from aiovmm.boot.aarch64 import load_kernel as load_arm64
from aiovmm.boot.x86_64 import load_kernel as load_x86
from aiovmm.errors import ImageError
from aiovmm.memory import GuestMemory
from tests.boot.aarch64.images import image, zboot
from tests.boot.images import COMPRESSORS, KERNEL_ADDRESS, bzimage, elf, payload
from tests.fuzz.source import Source, refused

_ELF = elf([(KERNEL_ADDRESS, b"code" * 50, 4096)], pvh=KERNEL_ADDRESS)
SEEDS = [
    b"\0" + _ELF,
    *(b"\0" + bzimage(payload(_ELF, name)) for name in COMPRESSORS),
    b"\1" + image(b"code" * 50),
    b"\1" + zboot(image(b"code" * 50), "gzip"),
]
_fd = os.memfd_create("kernel", os.MFD_CLOEXEC)
_path = f"/proc/self/fd/{_fd}"
_NO_CACHE = "/dev/null/none"  # nobody wants any of these kernels again
_memory = {0: GuestMemory.create([(0, 64 << 20)]), 1: GuestMemory.create([(1 << 30, 64 << 20)])}


def run(data: bytes) -> None:
    source = Source(data)
    which = source.number() % 2
    os.ftruncate(_fd, 0)
    os.pwrite(_fd, source.rest(), 0)
    load = load_arm64 if which else load_x86
    with refused(ImageError, saying=_path):
        load(_path, cache=_NO_CACHE).load_into(_memory[which])
