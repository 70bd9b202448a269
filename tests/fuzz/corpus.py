"""Inputs that are kept: one archive a target, of what a merge by coverage left over."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable
from pathlib import Path

__all__ = ["pack", "unpack"]

HERE = Path(__file__).resolve().parent / "corpus"
_EPOCH = (1980, 1, 1, 0, 0, 0)


def unpack(name: str, folder: Path, seeds: Iterable[bytes] = ()) -> int:
    """Write a target's inputs, and `seeds`, as files into `folder`; how many there are."""
    inputs = set(seeds)
    archive = HERE / f"{name}.zip"
    if archive.exists():
        with zipfile.ZipFile(archive) as kept:
            inputs.update(map(kept.read, kept.namelist()))
    folder.mkdir(parents=True, exist_ok=True)
    for content in inputs:
        (folder / hashlib.sha1(content, usedforsecurity=False).hexdigest()).write_bytes(content)
    return len(inputs)


def pack(name: str, folder: Path) -> None:
    """Replace a target's archive by the files of `folder`; the same files make the same archive."""
    HERE.mkdir(exist_ok=True)
    with zipfile.ZipFile(HERE / f"{name}.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as kept:
        for path in sorted(folder.iterdir()):
            kept.writestr(zipfile.ZipInfo(path.name, _EPOCH), path.read_bytes(), zipfile.ZIP_DEFLATED)
