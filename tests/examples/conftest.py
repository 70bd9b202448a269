"""Images for examples that boot a guest."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiovmm.image import build_initramfs

GUEST = Path("/guest/6.1")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Kernel and initramfs in the nested host."""
    path = tmp_path_factory.mktemp("images") / "initramfs.cpio"
    path.write_bytes(build_initramfs(busybox=GUEST.parent / "bin/busybox", modules=GUEST / "modules").data)
    return GUEST / "vmlinuz", path
