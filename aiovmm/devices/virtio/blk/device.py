"""BlkDevice: the virtio block device on a disk image (VIRTIO 1.2 §5.2)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from aiovmm.config import DiskConfig, RateLimit
from aiovmm.config.checks import encoded
from aiovmm.config.disk import SERIAL_SIZE
from aiovmm.devices.limits import Limiter
from aiovmm.devices.virtio.blk.counters import BlkCounters
from aiovmm.devices.virtio.blk.engine import Engine, IoKind, Processors, check_processors, ended
from aiovmm.devices.virtio.blk.image import DiskImage
from aiovmm.devices.virtio.blk.opening import opener
from aiovmm.devices.virtio.blk.protocol import (
    LASTING_CONFIG,
    MAX_SEGMENT_SECTORS,
    MAX_SEGMENTS,
    SECTOR,
    BlkConfigSpace,
    Feature,
    offered,
)
from aiovmm.devices.virtio.blk.service import BlkService
from aiovmm.devices.virtio.formats import HEADERS
from aiovmm.errors import HostError, SnapshotError, StateError
from aiovmm.native import ffi, lib, owners
from aiovmm.runtime.home import HomeLoop
from aiovmm.runtime.plain import Fields, State
from aiovmm.runtime.tasks import in_thread
from aiovmm.virtqueue import Queue, VirtioDevice

if TYPE_CHECKING:
    from aiovmm.devices.virtio.blk.overlay.base import Base

__all__ = ["BlkDevice"]

MAX_IN_FLIGHT = 256
"""Requests of one queue that are with the host's kernel at once; further ones wait in the ring."""
MAX_IN_FLIGHT_DEVICE = 4096

_MAX_SEGMENTS = 1022  # UIO_MAXIOV less header and status: one system call a request
_MAX_REQUEST = 64 << 20  # bytes; overlapping descriptors let a small guest ask for 4 GiB
_PUNT_BYTES = 256 << 10
_INLINE_BYTES = 1 << 20
_NEVER = 0xFFFF_FFFF
_SIZE_MAX = 2**63 - 1  # of a file, off_t


class BlkDevice(VirtioDevice):
    """A disk. `image` is open already and becomes the device's, or is a function that opens it and may block.

    `queue_size` in descriptors; `serial` (up to 20 bytes) is what GET_ID answers, None: one made of the file's numbers; `io`
    chooses how the host does the I/O; `affinity` has processors of the host for the threads of a queue, by its index, and then
    threads do it.
    Requests in flight are bounded to MAX_IN_FLIGHT a queue.
    """

    device_id: ClassVar[int] = 2
    lasting_config = LASTING_CONFIG
    _opens_slowly = True

    def __init__(
        self,
        image: DiskImage | Callable[[], DiskImage],
        *,
        num_queues: int = 1,
        queue_size: int = 128,
        serial: str | None = None,
        name: str = "disk",
        io: IoKind = IoKind.AUTO,
        limiter: Limiter | None = None,
        affinity: Mapping[int, Processors] = MappingProxyType({}),
    ) -> None:
        if serial:
            encoded("disk.serial", serial, SERIAL_SIZE)
        self.name = name
        self._home = HomeLoop(f"disk {name!r}")
        self.queue_sizes = (queue_size,) * num_queues
        self._serial = serial
        self._affinity = affinity
        self._io = IoKind.THREADS if affinity else io
        self._image: DiskImage | None = None
        self._open_image: Callable[[], DiskImage] | None = None
        self._engine: Engine | None = None
        self._config: BlkConfigSpace
        self._service: BlkService | None = None
        self._counters = BlkCounters()
        self._negotiated = 0
        self._resized = False  # the driver knows another size
        self._disk = ffi.new("struct avmm_blk *")
        self._limiter = limiter or Limiter()
        self._resizing = asyncio.Lock()
        if isinstance(image, DiskImage):
            self._present(image)
        else:
            self._open_image = image

    @classmethod
    def from_config(
        cls,
        config: DiskConfig,
        name: str = "disk",
        limiter: Limiter | None = None,
        image: Callable[[], DiskImage] | None = None,
    ) -> Self:
        """The disk that `config` describes, behind a group's `limiter` or one of its own. What it names is opened by `open`, or
        else what the function `image` opens, which may block. Raises ConfigError."""
        return cls(
            image or opener(config),
            num_queues=config.num_queues,
            queue_size=config.queue_size,
            serial=config.serial,
            name=name,
            io=IoKind.AUTO if config.io_uring else IoKind.THREADS,
            limiter=limiter or Limiter(config.rate_limit),
            affinity=dict(config.queue_affinity),
        )

    # -- what it is ----------------------------------------------------------------------------------------------------

    def _present(self, image: DiskImage) -> None:
        """Derive features and configuration space from the image."""
        queues = len(self.queue_sizes)
        self.features = int(offered(readonly=image.readonly, discard=image.can_discard, queues=queues))
        self._image = image
        self._config = BlkConfigSpace(
            image.geometry,
            capacity=image.sectors,
            seg_max=max(1, min(self.queue_sizes[0] - 2, _MAX_SEGMENTS)),
            num_queues=queues,
            max_segment_sectors=MAX_SEGMENT_SECTORS,
            max_segments=MAX_SEGMENTS,
            may_unmap=image.can_discard,
        )
        disk = self._disk
        disk.fd = image.fd
        owners.link(disk, layer=ffi.NULL if image.top_layer is None else image.top_layer.native)
        disk.align_file, disk.align_memory = image.align
        disk.punt_bytes = disk.inline_bytes = _NEVER
        disk.one_writer = not image.direct and not image.is_device
        disk.never_now = 0
        disk.writes_wait = lib.AVMM_BLK_NO if image.is_device else lib.AVMM_BLK_UNKNOWN  # a device takes many at a time
        if image.may_wait:  # and has the ring all the same, since somebody has said so
            disk.punt_bytes, disk.inline_bytes, disk.writes_wait = 0, 0, lib.AVMM_BLK_NO
        elif not image.direct:
            disk.punt_bytes, disk.inline_bytes = _PUNT_BYTES, _INLINE_BYTES
        disk.capacity = image.sectors
        disk.max_bytes = _MAX_REQUEST
        disk.readonly = image.readonly
        serial = image.serial if self._serial is None else self._serial
        disk.id = serial.encode(errors="surrogateescape").ljust(SERIAL_SIZE, b"\0")
        disk.n_magics = len(HEADERS) if image.guarded else 0
        disk.magics = _guarded().magics

    @property
    def capacity(self) -> int:
        """Bytes that the guest sees."""
        return self._config.capacity * SECTOR

    @property
    def io(self) -> IoKind:
        """What is in use for reads and writes, once it is open."""
        return self._opened()[1].kind

    @property
    def counters(self) -> BlkCounters:
        """Requests over all activations."""
        return self._counters if self._service is None else self._counters + self._service.counters

    def accepts(self, features: int) -> bool:
        """Any subset; without FLUSH the driver cannot empty a cache, so there is none (§5.2.5.2)."""
        self._negotiated = features
        self._set_write_back(bool(features & Feature.FLUSH))
        return True

    def read_config(self, offset: int, size: int) -> bytes:
        """`struct virtio_blk_config`."""
        return self._config.read(offset, size)

    def write_config(self, offset: int, data: bytes) -> Awaitable[None] | None:
        """The cache mode, if CONFIG_WCE was negotiated. In write-through mode when all that was written is stable (§5.2.5.2)."""
        if not self._negotiated & Feature.CONFIG_WCE:
            return None
        before = self._config.write_back
        self._config.write(offset, data)
        self._set_write_back(self._config.write_back)
        if before and not self._config.write_back and self._service is not None:
            return self._service.make_stable()
        return None

    def _set_write_back(self, on: bool) -> None:
        self._config.set_write_back(on)
        self._disk.write_through = not on

    # -- its life ------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the image, if it is not open, and set up the I/O. Raises HostError, ImageError."""
        self._home.check()
        if self._image is None and self._open_image is not None:
            opened = asyncio.ensure_future(in_thread(f"{self.label} open", self._open_image))
            try:
                self._present(await ended(opened))
            except asyncio.CancelledError:
                if not opened.cancelled() and opened.exception() is None:
                    opened.result().close()
                raise
        if self._engine is None:
            if self._affinity:
                await in_thread(f"{self.label} bind", check_processors, list(self._affinity.values()))
            waits = self._io is IoKind.AUTO and self._image is not None and self._image.may_wait
            self._engine = Engine(
                IoKind.THREADS if waits else self._io, self._depth * len(self.queue_sizes), self.label
            )
            owners.link(self._disk, ring=self._engine.native_ring)

    @property
    def _depth(self) -> int:
        return min(MAX_IN_FLIGHT, MAX_IN_FLIGHT_DEVICE // len(self.queue_sizes), self.queue_sizes[0])

    async def run(self, queues: list[Queue], features: int) -> None:
        """Serve requests. All I/O has ended when it returns."""
        image, engine = self._opened()
        self._disk.discard = bool(features & Feature.DISCARD)
        self._disk.write_zeroes = bool(features & Feature.WRITE_ZEROES)
        self._service = service = BlkService(
            self._disk, engine, image, self._depth, self._limiter, self.report, self._affinity
        )
        self._limiter.attach(self._disk)
        if self._resized:
            self._resized = False
            self.config_changed()
        try:
            await service.run(queues, lambda: not self.suspending)
        finally:
            self._limiter.detach(self._disk)
            self._service = None
            self._counters += service.counters

    def reset(self) -> None:
        """The cache is in write-back mode until the next driver says otherwise."""
        self._negotiated = 0
        self._set_write_back(True)

    async def freeze(self) -> Base:
        """The state of the disk becomes a base, for any number of OverlayImage.temporary. The device serves nobody any more, and
        is closed by this. Raises StateError if it is not open."""
        from aiovmm.devices.virtio.blk.overlay.base import Base

        async with self._resizing:
            image, engine = self._opened()
            self._image = self._engine = None
            self._leave_ring(engine)
            base = Base(image, readonly=image.readonly)
            try:
                await in_thread(f"{self.label} freeze", _close_all, engine)
            except BaseException:
                base.release()
                raise
        return base

    @property
    def why_not_on_disk(self) -> str | None:
        """A fork's overlay, and the disk that a sandbox writes to, have no name by which their guest could be given them
        elsewhere."""
        if self._image is not None and not os.fstat(self._image.fd).st_nlink:
            return "its file has no name, and goes with this guest: freeze() it, or give it disks=[DiskConfig(...)] that have one"
        return None

    async def sync(self) -> None:
        """Flush the image. Raises HostError."""
        image, engine = self._opened()
        if error := await engine.call(image.flush):
            raise HostError("flushing the disk image", error, "", str(image.path))

    def save(self) -> State:
        """The cache mode, and the size and serial number that the driver knows. The contents are the image's."""
        serial = bytes(self._disk.id)
        return {"write_back": self._config.write_back, "sectors": self._config.capacity, "serial": serial}

    def load(self, state: State) -> None:
        """The driver is told if the image has grown. Raises SnapshotError if it has shrunk."""
        fields = Fields(state, self.name)
        write_back, sectors = fields.flag("write_back"), fields.number("sectors")
        serial = fields.data("serial", SERIAL_SIZE) if "serial" in fields else None  # none in those of earlier versions
        fields.end()
        if sectors > self._config.capacity:
            raise SnapshotError(
                f"{self.name} had {sectors * SECTOR} bytes and its image has {self.capacity}: give it the image that it had"
            )
        self._set_write_back(write_back)
        if serial is not None and self._serial is None:  # made of the numbers of a file which is another's now
            self._serial = serial.rstrip(b"\0").decode(errors="surrogateescape")
            self._disk.id = serial
        self._resized = sectors != self._config.capacity

    async def close(self) -> None:
        """Close and unlock the image. Idempotent."""
        async with self._resizing:
            engine, self._engine = self._engine, None
            image, self._image = self._image, None
            if engine is not None:
                self._leave_ring(engine)
            if engine is not None or image is not None:  # on a network's file system it waits until the server has all
                await in_thread(f"{self.label} close", _close_all, engine, image)

    def _leave_ring(self, engine: Engine) -> None:
        owners.link(self._disk, ring=ffi.NULL)
        engine.leave(self._disk)

    # -- while it runs -------------------------------------------------------------------------------------------------

    @property
    def rate_limit(self) -> RateLimit | None:
        """What it may move in a time; settable at any time on the event loop's thread. A group's is that of all its disks."""
        return self._limiter.limit

    @rate_limit.setter
    def rate_limit(self, limit: RateLimit | None) -> None:
        self._home.check_thread()
        self._limiter.set(limit)

    async def resize(self, size: int) -> None:
        """Make the image file `size` bytes long and tell the guest. Shrinking cuts off what lies beyond, whatever the guest has
        there. Raises UsageError, HostError, StateError (from another event loop, or when it is closed)."""
        from aiovmm.runtime.arguments import whole  # for who asks

        whole(size, "size", 0, _SIZE_MAX)
        await self._change_size(lambda image: image.resize(size), size // SECTOR)

    async def refresh(self) -> None:
        """Look at the image's size and tell the guest if it has changed: it was resized by other means. Raises HostError."""
        await self._change_size(DiskImage.refresh)

    async def _change_size(self, change: Callable[[DiskImage], bool], sectors: int | None = None) -> None:
        self._home.check()
        async with self._resizing:
            image, engine = self._opened()
            if sectors is not None:  # or a write beyond the new end would undo the shrinking
                self._disk.capacity = min(image.sectors, sectors)
            try:
                changed = await engine.call(change, image)
            finally:
                self._disk.capacity = image.sectors
            if changed:
                self._config.capacity = image.sectors
                self.config_changed()

    def _opened(self) -> tuple[DiskImage, Engine]:
        if self._image is None or self._engine is None:
            raise StateError(f"{self.name} is not open")
        return self._image, self._engine


def _close_all(*opened: Engine | DiskImage | None) -> None:
    for one in opened:
        if one is not None:
            one.close()


@cache
def _guarded() -> Any:
    """A disk with what the guest may not write to one that is guarded, to be copied: that is the same for all."""
    disk = ffi.new("struct avmm_blk *")
    for magic, header in zip(disk.magics, HEADERS, strict=False):
        magic.place, magic.offset, magic.size = header.place, header.offset, len(header.magic)
        magic.bytes = header.magic.ljust(len(magic.bytes), b"\0")
    return disk
