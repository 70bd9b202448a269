"""Archives to make images of, and what is in an image, as erofs-utils read it."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from aiovmm.rootfs.blocks import Blocks
from aiovmm.rootfs.erofs import FIRST_BLOCK, write_erofs
from aiovmm.rootfs.layer import LeftOut, apply_archive, leave_out_devices
from aiovmm.rootfs.limits import Limits
from aiovmm.rootfs.tar import TarReader
from aiovmm.rootfs.tree import Tree

needs_erofs = pytest.mark.skipif(shutil.which("fsck.erofs") is None, reason="no erofs-utils")

Entry = tuple[str, bytes | str | None]
Member = tuple[str, dict[str, Any], bytes] | tuple[str, dict[str, Any]]


def archive(*members: Member) -> bytes:
    """A tar archive of (path, fields of TarInfo, content)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, fields, *content in members:
            info = tarfile.TarInfo(path)
            data = bytes(content[0]) if content else b""
            info.size = len(data)
            for name, value in fields.items():
                setattr(info, name, value)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def file(path: str, data: bytes = b"", **fields: Any) -> tuple[str, dict[str, Any], bytes]:
    return path, {"mode": 0o644, **fields}, data


def directory(path: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    return path, {"type": tarfile.DIRTYPE, "mode": 0o755, **fields}


def symlink(path: str, target: str) -> tuple[str, dict[str, Any]]:
    return path, {"type": tarfile.SYMTYPE, "linkname": target}


def hardlink(path: str, target: str) -> tuple[str, dict[str, Any]]:
    return path, {"type": tarfile.LNKTYPE, "linkname": target}


class Made:
    """An image of layers, made in this process: its tree, and the file with it."""

    def __init__(self, path: Path, layers: Iterable[bytes], limits: Limits | None = None, *, is_layer: bool = True):
        self.path = path
        self.left_out = LeftOut()
        limits = limits or Limits()
        with open(path, "w+b") as out:
            blocks = Blocks(out.fileno(), FIRST_BLOCK, limits.size, limits.unpacked)
            self.tree = Tree(limits, blocks.free)
            for layer in layers:
                apply_archive(self.tree, blocks, TarReader(io.BytesIO(layer).read), self.left_out, is_layer=is_layer)
            leave_out_devices(self.tree, self.left_out)
            write_erofs(self.tree, blocks, out.fileno())

    def paths(self) -> set[str]:
        return {os.fsdecode(path) for path, _ in self.tree.walk()} - {""}

    def extracted(self) -> Path:
        """All of it as erofs-utils unpack it, once fsck finds nothing wrong."""
        target = self.path.with_suffix(".d")
        subprocess.run(["fsck.erofs", f"--extract={target}", "--preserve", self.path], check=True, capture_output=True)
        return target


def content(path: Path) -> dict[str, tuple[Any, ...]]:
    """What is below a directory: kind and mode, owners, time, content or target, and which names are one file's."""
    found: dict[str, tuple[Any, ...]] = {}
    numbers: dict[int, str] = {}
    for name in sorted(path.rglob("*")):
        status = name.lstat()
        first = numbers.setdefault(status.st_ino, str(name.relative_to(path)))
        data: Any = None
        if stat.S_ISREG(status.st_mode):
            data = name.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            data = os.readlink(name)
        when = 0 if stat.S_ISLNK(status.st_mode) else int(status.st_mtime)
        same = "" if stat.S_ISDIR(status.st_mode) else first
        found[str(name.relative_to(path))] = (status.st_mode, status.st_uid, status.st_gid, when, data, same)
    return found
