"""A disk on an image that is not raw (qcow2, VHD, VHDX): QEMU's storage daemon has the image, and serves the guest's queues."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from aiovmm.config import DiskConfig, ImageType
from aiovmm.devices.virtio.formats import open_file
from aiovmm.devices.virtio.qcow2 import HEADER_SIZE, parse_header
from aiovmm.devices.virtio.vhost_user.blk import VhostUserBlk
from aiovmm.devices.virtio.vhost_user.storage_daemon import StorageDaemon
from aiovmm.errors import HostError, ImageError
from aiovmm.runtime.tasks import in_thread
from aiovmm.vhost_user import Resume

__all__ = ["ImageBlk", "check_backing"]

_LIVED = 10.0  # seconds: a daemon that ends earlier is not started again, for it would only do the same
_MOST_FILES = 64


class ImageBlk(VhostUserBlk):
    """The disk that `config` describes, on an image of the `kind`. The daemon is started with the device. When it ends that is
    told with its last words, and the device needs a reset: what the guest has written and not flushed may have gone with the
    daemon's caches, which its driver must hear of. For the time after that another one is started, if this one had been of use.
    """

    resume = Resume.NEVER

    def __init__(self, config: DiskConfig, kind: ImageType, name: str = "disk") -> None:
        config.check_for_qemu(kind)
        super().__init__(
            "", num_queues=config.num_queues, queue_size=config.queue_size, readonly=config.readonly, name=name
        )
        self.config = config
        self.kind = kind
        self.daemon: StorageDaemon | None = None
        self._died: asyncio.Future[None] | None = None
        self._began = 0.0
        self._restart: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Look at the image, start the daemon, and learn what it offers. Raises HostError, ImageError, PeerError, ConfigError."""
        loop = asyncio.get_running_loop()
        await in_thread(f"{self.label} open", _check, self.config, self.kind)
        self.daemon = StorageDaemon(self.config, self.kind, self._ended)
        self._died = loop.create_future()
        try:
            self.daemon.listen()
            self.frontend.path = self.daemon.path
            await self.daemon.start()
            await self._unless_it_dies(loop.create_task(super().open(), name=f"{self.name} open"))
            self._began = loop.time()
        except BaseException:
            await self.close()
            raise
        finally:
            self._died = None

    async def _unless_it_dies(self, opening: asyncio.Task[None]) -> None:
        assert self._died is not None
        try:
            await asyncio.wait([opening, self._died], return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not opening.done() or self._died.done():
                opening.cancel()
                await asyncio.wait([opening])
        if self._died.done():
            if not opening.cancelled():
                opening.exception()
            self._died.result()
        await opening

    def _ended(self, error: HostError) -> None:
        if self._died is not None:
            if not self._died.done():
                self._died.set_exception(error)
            return
        assert self.daemon is not None
        self.report(error)
        self._refused(error)
        if asyncio.get_running_loop().time() - self._began < _LIVED:
            self.daemon.refuse()
        else:
            self._restart = asyncio.get_running_loop().create_task(self._start_again(), name=f"{self.name} restart")

    async def _start_again(self) -> None:
        assert self.daemon is not None
        self._began = asyncio.get_running_loop().time()
        try:
            await self.daemon.start()
        except HostError as exc:
            self.report(exc)
            self.daemon.refuse()

    async def close(self) -> None:
        """End the connection and the daemon, which writes what it has first. Idempotent."""
        if self._restart is not None:
            self._restart.cancel()
            await asyncio.wait([self._restart])
            self._restart = None
        await super().close()
        daemon, self.daemon = self.daemon, None
        if daemon is not None:
            await daemon.close()


def _check(config: DiskConfig, kind: ImageType) -> None:
    """Before the daemon is asked: what it would say less clearly, or not at all. Raises HostError, ImageError."""
    assert config.path is not None
    try:
        if not config.path.is_file() and not config.path.is_block_device():
            os.stat(config.path)
            raise ImageError(str(config.path), "is neither a file nor a block device")
        if kind is ImageType.QCOW2:
            check_backing(config.path, followed=config.backing_files)
    except OSError as exc:
        if isinstance(exc, HostError):
            raise
        name = str(exc.filename or config.path)  # it may be one that the image is based on
        raise HostError("opening the disk image", exc.errno or 0, "", name) from exc


def check_backing(path: Path, *, followed: bool) -> None:
    """Look at the files that a qcow2 image is made of. Raises OSError, and ImageError for one that names others and is not to, or
    that does not say what they are."""
    for _ in range(_MOST_FILES):
        with open_file(path) as file:
            named = parse_header(file.read(HEADER_SIZE), str(path))
        if (named.backing is not None or named.elsewhere) and not followed:
            what = f"is backed by {named.backing}" if named.backing is not None else "keeps its data in another file"
            hint = "say backing_files=on to have that opened, too; it is the image that says which file"
            raise ImageError(str(path), what, hint)
        if named.backing is None:
            return
        if ":" in named.backing.split("/")[0]:
            raise ImageError(str(path), f"is backed by {named.backing}, which is no file's name")
        if named.format is None:
            hint = "`qemu-img rebase -u -b BASE -F FORMAT IMAGE` records it"
            raise ImageError(str(path), f"does not say of what format {named.backing} is, by which it is backed", hint)
        if named.format != "qcow2":
            return
        path = path.parent / named.backing
    raise ImageError(str(path), f"is backed by more than {_MOST_FILES} files, or by itself")
