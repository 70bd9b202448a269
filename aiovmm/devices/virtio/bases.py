"""Which files an image names as those that it is based on: for whoever has to know before they are opened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from aiovmm.config import DiskConfig, ImageType
from aiovmm.devices.virtio.blk.image import let_go_of
from aiovmm.devices.virtio.blk.overlay.checks import MOST_LAYERS
from aiovmm.devices.virtio.blk.overlay.file import is_overlay, open_overlay
from aiovmm.devices.virtio.formats import open_file
from aiovmm.devices.virtio.qcow2 import HEADER_SIZE, MAGIC, parse_header
from aiovmm.errors import AiovmmError

__all__ = ["bases_of"]


def bases_of(config: DiskConfig) -> Iterator[Path]:
    """That of the image, the base of that, and so on, where they are followed; as far as they can be read, for who opens them
    says what is wrong with one. Blocks for a read of each."""
    if not config.backing_files or config.path is None or config.image_type is ImageType.RAW:
        return
    path = config.path
    for _ in range(MOST_LAYERS):
        try:
            named = _named(path)
        except (OSError, AiovmmError):
            return
        if named is None:
            return
        path = path.parent / named
        yield path


def _named(path: Path) -> str | Path | None:
    with open_file(path) as file:
        head = file.read(HEADER_SIZE)
    if head.startswith(MAGIC):
        return parse_header(head, str(path)).backing
    if not is_overlay(path):
        return None
    fd, header = open_overlay(path, readonly=True)
    let_go_of(fd)
    return header.base
