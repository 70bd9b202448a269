"""Whether an overlay may be put over a base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from aiovmm.devices.virtio.blk.overlay.base import Base
from aiovmm.devices.virtio.blk.overlay.file import identity_of
from aiovmm.devices.virtio.blk.overlay.header import Header
from aiovmm.errors import ImageError

__all__ = ["MOST_LAYERS", "check_base", "check_depth"]

MOST_LAYERS = 32
"""Overlays of overlays: each costs each read a look."""


def check_base(header: Header, base: Base, path: Path, *, committing: bool = False) -> None:
    """Raises ImageError if the overlay was made for another base than this one as it is now."""
    check_depth(base, path)
    now = identity_of(base)
    if header.committing and not committing:
        hint = f"`aiovmm disk commit {path} --base {base.image.path}` finishes that"
        raise ImageError(str(path), "is half committed to its base", hint)
    if header.committing:  # all but what a commit changes
        now = replace(now, size=header.identity.size, mtime=header.identity.mtime)
    difference = header.identity.difference(now)
    if difference is not None:
        hint = (
            f"give it the base that it was made for ({header.base}); or, if you know that what is in it is the same, "
            f"`aiovmm disk rebase {path} --base {base.image.path} --same`"
        )
        raise ImageError(str(path), f"does not fit its base {base.image.path}: {difference}", hint)


def check_depth(base: Base, path: Path) -> None:
    """Raises ImageError for more layers than MOST_LAYERS."""
    if base.depth >= MOST_LAYERS:
        raise ImageError(
            str(path), f"has more than {MOST_LAYERS} layers", "`aiovmm disk commit` merges an overlay into its base"
        )
