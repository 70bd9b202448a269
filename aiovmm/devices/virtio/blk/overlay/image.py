"""An overlay as the back end of a disk: what the guest writes lies in a file of its own, all else is read from a base."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from aiovmm.devices.virtio.blk import probe
from aiovmm.devices.virtio.blk.extents import Extent
from aiovmm.devices.virtio.blk.image import DiskImage, let_go_of
from aiovmm.devices.virtio.blk.overlay.base import Base
from aiovmm.devices.virtio.blk.overlay.checks import check_base, check_depth
from aiovmm.devices.virtio.blk.overlay.file import (
    create_overlay,
    identity_of,
    open_overlay,
    reserve_map,
    unnamed,
    write_header,
)
from aiovmm.devices.virtio.blk.overlay.header import Header, layout
from aiovmm.devices.virtio.blk.overlay.layer import Layer
from aiovmm.devices.virtio.blk.protocol import SECTOR, Geometry
from aiovmm.errors import HostError, UsageError
from aiovmm.native import lib
from aiovmm.runtime.forks import keep_private

__all__ = ["OverlayImage"]


class OverlayImage(DiskImage):
    """An open overlay over a `base`, which it holds. `header`: of its file; None: the file is temporary.

    Requests go to whichever file has the data (native/src/blk_layers.c). `flush` writes the map when the data is on the medium.
    """

    base: Base
    top_layer: Layer

    def __init__(self, path: Path, fd: int, base: Base, header: Header | None, layer: Layer, *, readonly: bool) -> None:
        below = base.image
        self.path = path
        self.fd = fd
        self.base = base
        self.header = header
        self.top_layer = layer
        self.readonly = readonly
        self.direct = below.direct
        self.is_device = False
        self.may_wait = below.may_wait or probe.may_wait(fd)
        self.size = int(layer.native.size)
        self.align = self._alignment()
        logical = max(below.geometry.logical, self.align[0], SECTOR)
        cluster = 1 << int(layer.native.shift)
        self.geometry = Geometry(logical=logical, physical=max(cluster, logical), discard=max(cluster, logical))
        self.can_discard = below.sparse and not readonly and self.try_discard()
        self.sparse = below.sparse
        self.guarded = below.marks_matter and not readonly
        self.marks_matter = below.marks_matter

    def _alignment(self) -> tuple[int, int]:
        if not self.direct:
            return 0, 0
        mine = probe.direct_alignment(self.fd, is_device=False)
        theirs = self.base.image.align
        return max(mine[0], theirs[0]), max(mine[1], theirs[1])

    @classmethod
    def open_over(
        cls, base: Base, path: str | os.PathLike[str], *, readonly: bool = False, committing: bool = False
    ) -> OverlayImage:
        """The overlay at `path` over `base`, which becomes its own; made anew if there is none. Locked: exclusively, or shared if
        `readonly`. `committing`: to write it into the base. Raises HostError, ImageError, and releases the base then."""
        path = Path(path)
        try:
            if not readonly and not committing and not os.path.lexists(path):
                create_overlay(path, base)
            return cls._open(base, path, readonly=readonly, committing=committing)
        except BaseException:
            base.release()
            raise

    @classmethod
    def _open(cls, base: Base, path: Path, *, readonly: bool, committing: bool) -> OverlayImage:
        fd, header = open_overlay(path, readonly=readonly, direct=base.image.direct)
        try:
            check_base(header, base, path, committing=committing)
            return cls(path, fd, base, header, _layer_of(fd, header, base), readonly=readonly)
        except OSError as exc:
            let_go_of(fd)
            raise HostError("examining the overlay", exc.errno or 0, "", str(path)) from exc
        except BaseException:
            let_go_of(fd)
            raise

    @classmethod
    def temporary(cls, base: Base, directory: str | os.PathLike[str] | None = None) -> OverlayImage:
        """A disk of its own over `base`, which it holds, in a file without a name in `directory` (that of temporary files): it is
        gone with its last user, whatever ends that. A flush costs nothing, for nothing is to outlive that. Raises HostError."""
        check_depth(base, base.image.path)
        place = os.fspath(directory or tempfile.gettempdir())
        size = base.image.sectors * SECTOR
        try:
            fd = keep_private(unnamed(place, base.image.direct))
        except OSError as exc:
            raise HostError("making a temporary overlay", exc.errno or 0, "TMPDIR says where else", place) from exc
        try:
            os.ftruncate(fd, size)
            plan = layout(size, identity_of(base), base.image.path, bytes(16))
            layer = Layer(fd, size)
            layer.put_over(base.layer, plan.base_size, shift=plan.shift, data_at=0, map_size=plan.map_used)
            return cls(base.image.path, fd, base.hold(), None, layer, readonly=base.readonly)
        except OSError as exc:
            let_go_of(fd)
            raise HostError("making a temporary overlay", exc.errno or 0, "TMPDIR says where else", place) from exc
        except BaseException:
            let_go_of(fd)
            raise

    # -- as a disk -----------------------------------------------------------------------------------------------------

    @property
    def serial(self) -> str:
        """Of the file, as of any image; a temporary one has its base's, for it stands for that."""
        return super().serial if self.header is not None else self.base.image.serial

    @property
    def sectors(self) -> int:
        """Its capacity."""
        return self.size // SECTOR

    def refresh(self) -> bool:
        """Nobody else can change it."""
        return False

    def resize(self, size: int) -> bool:
        """See DiskImage.resize; what a disk that has grown has more of is zeros, whatever is in the base."""
        self._check_size(size)
        before = self.sectors
        try:
            if size < self.size:
                self._shrink(size)
            else:
                self._grow(size)
        except OSError as exc:
            raise HostError(f"resizing the overlay to {size} bytes", exc.errno or 0, "", str(self.path)) from exc
        self.size = size
        return self.sectors != before

    def _shrink(self, size: int) -> None:
        """The header first: what is cut off is not the disk's any more then, whatever becomes of the rest."""
        native = self.top_layer.native
        self._write_header(size, min(int(native.below_size), size))
        self.top_layer.shrink(size)
        self._check_flushed()
        os.ftruncate(self.fd, int(native.data_at) + size)

    def _grow(self, size: int) -> None:
        self._check_flushed()
        os.ftruncate(self.fd, int(self.top_layer.native.data_at) + size)
        self._write_header(size, int(self.top_layer.native.below_size))
        self.top_layer.grow(size)

    def _check_flushed(self) -> None:
        if error := self.flush():
            raise OSError(error, os.strerror(error))

    def _write_header(self, size: int, base_size: int) -> None:
        if self.header is None:
            return
        self.put_header(replace(self.header, size=size, base_size=base_size))

    def put_header(self, header: Header) -> None:
        """The file is described by this from now on. Raises OSError, ImageError."""
        header = replace(header, generation=header.generation + 1)
        reserve_map(self.fd, header)
        write_header(self.fd, header)
        self.header = header

    def empty(self) -> None:
        """Nothing of the disk is here any more: all that it shows is the base. Raises OSError."""
        self.top_layer.clear()
        self._check_flushed()
        super().discard(Extent(int(self.top_layer.native.data_at), self.size, True))

    def _check_size(self, size: int) -> None:
        super()._check_size(size)
        room = len(self.top_layer.pages) * 8 << int(self.top_layer.native.shift)
        if size > room:
            hint = "`aiovmm disk commit` it into its base, or copy it into a raw image"
            raise UsageError(f"the overlay {self.path} has a map for {room} bytes: {hint}")

    def discard(self, extent: Extent, stop: Callable[[], bool] = lambda: False) -> int:
        """Zeros from now on, as from a file that is punched, whatever is in the base; 0 or an errno."""
        return self._zero(extent, punch=True, stop=stop)

    def write_zeroes(self, extent: Extent, stop: Callable[[], bool] = lambda: False) -> int:
        """See DiskImage.write_zeroes."""
        return self._zero(extent, punch=extent.unmap and self.can_discard, stop=stop)

    def _zero(self, extent: Extent, *, punch: bool, stop: Callable[[], bool]) -> int:
        """The whole clusters in the file, then in the map; of those at both ends what stays is brought from below."""
        native = self.top_layer.native
        cluster = 1 << int(native.shift)
        begin, end = extent.offset, extent.offset + extent.size
        first = -(-begin // cluster) * cluster
        last = end if end == self.size else end // cluster * cluster
        if first > last:  # within one cluster
            return int(lib.avmm_blk_layer_bring(native, begin, begin, end))
        if begin < first and (error := lib.avmm_blk_layer_bring(native, begin, begin, first)):
            return int(error)
        if last < end and (error := lib.avmm_blk_layer_bring(native, last, last, end)):
            return int(error)
        if first < last:
            there = Extent(int(native.data_at) + first, last - first, extent.unmap)
            if error := self._zero_file(there, punch=punch, stop=stop):
                return error
            lib.avmm_blk_layer_mark(native, first, last)
        return 0

    def _zero_file(self, there: Extent, *, punch: bool, stop: Callable[[], bool]) -> int:
        error = super().discard(there, stop) if punch else super().write_zeroes(replace(there, unmap=False), stop)
        if error in (errno.EOPNOTSUPP, errno.ENOSYS) and punch:
            return super().write_zeroes(replace(there, unmap=False), stop)
        return error

    def flush(self) -> int:
        """What was written, and the map, on the medium; 0 or an errno."""
        return self.top_layer.flush()

    def close(self) -> None:
        """Write the map, close and unlock, let go of the base. Idempotent."""
        if self.fd < 0:
            return
        if not self.readonly:
            self.flush()
        super().close()
        self.base.release()


def _layer_of(fd: int, header: Header, base: Base) -> Layer:
    layer = Layer(fd, header.size)
    below = min(header.base_size, base.size)
    layer.put_over(base.layer, below, shift=header.shift, data_at=header.data_at, map_size=header.map_size)
    layer.keep_map(header.map_at)
    return layer
