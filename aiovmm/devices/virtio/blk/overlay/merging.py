"""An overlay's data into its base, and an overlay from one base to another: commit and rebase, which may be killed at any moment.

Commit: the header says that it has begun, and from then on the overlay goes with nothing but a commit; the data is copied, which
may be done any number of times; the header says that the base is what it is now; the map is emptied, which changes nothing then.
Rebase: what the two bases have different goes into the overlay, which is then the same over either; the header names the new one.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from aiovmm.devices.virtio.blk.extents import Extent
from aiovmm.devices.virtio.blk.image import DiskImage, let_go_of
from aiovmm.devices.virtio.blk.overlay.base import Base
from aiovmm.devices.virtio.blk.overlay.chain import open_base
from aiovmm.devices.virtio.blk.overlay.copying import pieces, read_at, write_all
from aiovmm.devices.virtio.blk.overlay.file import identity_of, is_overlay, name_of_base, open_overlay, write_header
from aiovmm.devices.virtio.blk.overlay.image import OverlayImage
from aiovmm.devices.virtio.blk.overlay.layer import Layer
from aiovmm.errors import HostError, ImageError
from aiovmm.native import lib

__all__ = ["adopt", "commit", "rebase"]

_STEP = 1 << 20


def commit(overlay: Path, base: Path, *, raw: bool = False) -> int:
    """Write what `overlay` has into the raw image or device `base`, which is locked meanwhile, and empty it. How many bytes.
    Raises HostError, ImageError."""
    if not raw and is_overlay(base):
        hint = "`aiovmm disk copy` makes a raw image of both and what is below"
        raise ImageError(str(base), "is an overlay, and only raw images and devices are committed to", hint)
    target = DiskImage.open(base, raw=raw, sparse=False)  # nothing is tried on it: it must be what it was
    top = None
    try:
        top = OverlayImage.open_over(Base(target), overlay, committing=True)
        try:
            return _commit(top, target)
        except OSError as exc:
            if isinstance(exc, HostError):
                raise
            hint = "the overlay is as it was: mend that, and commit again"
            raise HostError("committing the overlay", exc.errno or 0, hint, str(base)) from exc
    finally:
        if top is not None:
            top.close()


def _commit(top: OverlayImage, target: DiskImage) -> int:
    assert top.header is not None
    if target.is_device and top.size > target.size:
        raise ImageError(
            str(target.path), f"has {target.size} bytes, and its overlay {top.size}", "give it more room first"
        )
    if not top.header.committing:
        top.put_header(replace(top.header, committing=True))
    target.can_discard = target.try_discard()
    if not target.is_device:
        os.ftruncate(target.fd, top.size)
        target.refresh()
    done = 0
    for at, size, depth in pieces(top.top_layer, top.size):
        if depth == 0:
            _put(top, target, at, size)
            done += size
        elif depth < 0 and (error := target.write_zeroes(Extent(at, size, True))):
            raise OSError(error, os.strerror(error))
    os.fsync(target.fd)
    now = identity_of(Base(target))
    top.put_header(replace(top.header, committing=False, identity=now, base_size=min(top.size, now.size)))
    top.empty()
    return done


def _put(top: OverlayImage, target: DiskImage, at: int, size: int) -> None:
    """What is zeros becomes a hole."""
    end = at + size
    while at < end:
        data = read_at(top.top_layer, at, min(end - at, 1 << 20), 0)
        if data.count(0) == len(data) and target.can_discard:
            if error := target.discard(Extent(at, len(data), True)):
                raise OSError(error, os.strerror(error))
        else:
            write_all(target.fd, data, at)
        at += len(data)


def adopt(overlay: Path, base: Path, *, raw: bool = False, backing_files: bool = False) -> None:
    """Take the user's word that `base` has the same content as the base that the overlay was made for. Raises HostError,
    ImageError."""
    below = open_base(base, raw=raw, backing_files=backing_files)
    try:
        fd, header = open_overlay(overlay, readonly=False)
        try:
            if header.committing:
                raise ImageError(
                    str(overlay), "is half committed to its base", f"`aiovmm disk commit {overlay} --base BASE` first"
                )
            now, name = identity_of(below), name_of_base(overlay, base)
            size = min(header.base_size, now.size)
            write_header(fd, replace(header, identity=now, base=name, base_size=size, generation=header.generation + 1))
        finally:
            let_go_of(fd)
    except OSError as exc:
        if isinstance(exc, HostError):
            raise
        raise HostError("rebasing the overlay", exc.errno or 0, "", str(overlay)) from exc
    finally:
        below.release()


def rebase(overlay: Path, old: Path, new: Path, *, raw: bool = False, backing_files: bool = False) -> int:
    """Put the overlay over the base `new` instead of `old`; its guest sees no difference. How many bytes it has more. Raises
    HostError, ImageError."""
    after = open_base(new, raw=raw, backing_files=backing_files)
    top = None
    try:
        top = OverlayImage.open_over(open_base(old, raw=raw, backing_files=backing_files), overlay)
        done = _bring_differences(top, after)
        if error := top.flush():
            raise OSError(error, os.strerror(error))
        assert top.header is not None
        now = identity_of(after)
        shown = min(int(top.top_layer.native.below_size), now.size)
        top.put_header(replace(top.header, identity=now, base=name_of_base(overlay, new), base_size=shown))
        return done
    except OSError as exc:
        if isinstance(exc, HostError):
            raise
        raise HostError("rebasing the overlay", exc.errno or 0, "it is as it was", str(overlay)) from exc
    finally:
        after.release()
        if top is not None:
            top.close()


def _bring_differences(top: OverlayImage, after: Base) -> int:
    cluster = 1 << int(top.top_layer.native.shift)
    done = 0
    for at, size, depth in pieces(top.top_layer, top.size):
        if depth == 0:
            continue
        for part in range(at // cluster * cluster, at + size, _STEP):
            done += _bring_part(top, after, part, min(part + _STEP, at + size), cluster)
    return done


def _bring_part(top: OverlayImage, after: Base, start: int, end: int, cluster: int) -> int:
    mine = _content(top.top_layer, start, end - start)
    theirs = _content(after.layer, start, end - start, after.size)
    done = 0
    for at in range(0, end - start, cluster) if mine != theirs else ():
        if mine[at : at + cluster] != theirs[at : at + cluster]:
            if error := lib.avmm_blk_layer_bring(top.top_layer.native, start + at, 0, 0):
                raise OSError(error, os.strerror(error))
            done += cluster
    return done


def _content(layer: Layer, at: int, size: int, limit: int | None = None) -> bytes:
    """Zeros beyond `limit`."""
    end = at + size if limit is None else min(at + size, limit)
    parts = []
    for begin, run, depth in pieces(layer, end, at):
        while run:
            data = read_at(layer, begin, run, depth)
            parts.append(data)
            begin, run = begin + len(data), run - len(data)
    return b"".join(parts).ljust(size, b"\0")
