"""What a file is, for people and scripts."""

from __future__ import annotations

import os
from pathlib import Path

from aiovmm.devices.virtio.blk.image import let_go_of
from aiovmm.devices.virtio.blk.overlay.file import is_overlay, open_overlay
from aiovmm.devices.virtio.formats import format_of_file
from aiovmm.errors import HostError, ImageError

__all__ = ["describe"]


def describe(path: Path) -> dict[str, object]:
    """`format`, `size` of the disk in bytes if that is known here, `allocated`: bytes that the file takes up; of an overlay
    `written`: bytes of clusters that it has, `cluster`, `base`, and the `state`. Raises HostError, ImageError."""
    try:
        if not path.is_file() and not path.is_block_device():
            os.stat(path)
            raise ImageError(str(path), "is neither a file nor a block device")
        if is_overlay(path):
            return _overlay(path)
        found = format_of_file(path) or "raw"
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
        facts: dict[str, object] = {"format": found, "file_size": size, "allocated": path.stat().st_blocks * 512}
        return {**facts, "size": -(-size // 512) * 512} if found == "raw" else facts
    except OSError as exc:
        if isinstance(exc, HostError):
            raise
        raise HostError("examining the image", exc.errno or 0, "", str(path)) from exc


def _overlay(path: Path) -> dict[str, object]:
    fd, header = open_overlay(path, readonly=True)
    try:
        bits = int.from_bytes(os.pread(fd, header.map_used, header.map_at), "little")
        status = os.fstat(fd)
    finally:
        let_go_of(fd)
    clusters = -(-header.size >> header.shift) if header.size % (1 << header.shift) else header.size >> header.shift
    return {
        "format": "overlay",
        "size": header.size,
        "file_size": status.st_size,
        "allocated": status.st_blocks * 512,
        "cluster": 1 << header.shift,
        "written": min((bits & (1 << clusters) - 1).bit_count() << header.shift, header.size),
        "base": str(path.parent / header.base),
        "base_kind": header.identity.kind.name.lower(),
        "state": "half committed" if header.committing else "whole",
    }
