"""What a file or block device says of itself: size, block sizes, alignment, discards. Raises OSError throughout."""

from __future__ import annotations

import array
import fcntl
import mmap
import os
from pathlib import Path

from aiovmm.devices.virtio.blk.protocol import SECTOR, Geometry
from aiovmm.native import lib

__all__ = ["device_discards", "device_geometry", "direct_alignment", "file_geometry", "may_wait", "size_of"]

_BLKSSZGET, _BLKPBSZGET, _BLKIOOPT = 0x1268, 0x127B, 0x1279  # <linux/fs.h>
_PAGE = 4096


def size_of(fd: int) -> int:
    """Bytes, of a file or a block device. The file position is nobody's, so it may move."""
    return os.lseek(fd, 0, os.SEEK_END)


_OF_THIS_HOST = {  # statfs(2)
    0xEF53: "ext4",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0xF2F52010: "f2fs",
    0xCA451A4E: "bcachefs",
    0x01021994: "tmpfs",
    0x858458F6: "ramfs",
    0x958458F6: "hugetlbfs",
    0x794C7630: "overlay",
    0xE0F5E1E2: "erofs",
    0x73717368: "squashfs",
}


def may_wait(fd: int) -> bool:
    """Whether who begins to read a file may have to wait for somebody else: a server, another process. The file systems of the
    host's own disks give a transfer to the disk and go on."""
    return lib.avmm_file_system(fd) not in _OF_THIS_HOST


def file_geometry(fd: int, logical: int) -> Geometry:
    """An image file: the guest is told the block size of the file system, so that it writes and discards whole blocks."""
    block = min(max(os.fstat(fd).st_blksize, logical), 1 << 16)
    if block & (block - 1):
        block = _PAGE
    return Geometry(logical=logical, physical=block, discard=block)


def device_geometry(fd: int) -> Geometry:
    """A block device: its own figures."""
    logical, physical, optimal = (_ask(fd, request) for request in (_BLKSSZGET, _BLKPBSZGET, _BLKIOOPT))
    granularity = _queue_limit(fd, "discard_granularity")
    return Geometry(logical, max(physical, logical), optimal, max(granularity, logical))


def device_discards(fd: int) -> bool:
    """Whether a block device takes discards."""
    return _queue_limit(fd, "discard_max_bytes") > 0


def direct_alignment(fd: int, *, is_device: bool) -> tuple[int, int]:
    """(file, memory) alignment in bytes that O_DIRECT wants of `fd`, which is open with it."""
    if is_device:
        logical = _ask(fd, _BLKSSZGET)
        return logical, logical
    if size_of(fd) < _PAGE:  # nothing to try it on: this suits every file system
        return _PAGE, _PAGE
    with mmap.mmap(-1, 2 * _PAGE) as page, memoryview(page) as view:
        for alignment in (SECTOR, 1024, 2048):
            with view[alignment : 2 * alignment] as buffer:
                try:
                    os.preadv(fd, [buffer], alignment)
                except OSError:
                    continue
                return alignment, alignment
    return _PAGE, _PAGE


def _ask(fd: int, request: int) -> int:
    """An ioctl that answers with one unsigned int."""
    answer = array.array("I", [0])
    fcntl.ioctl(fd, request, answer)
    return answer[0]


def _queue_limit(fd: int, name: str) -> int:
    """A figure of the request queue of a device, or of the device that a partition lies on; 0 if there is none."""
    number = os.fstat(fd).st_rdev
    node = Path(os.path.realpath(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"))
    for directory in (node, node.parent):
        try:
            return int((directory / "queue" / name).read_text())
        except (FileNotFoundError, NotADirectoryError):
            continue
    return 0
