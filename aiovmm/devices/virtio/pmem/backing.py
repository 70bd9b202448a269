"""The file behind a pmem device.

As in the reference monitor: without `discard_writes` the file is opened for writing and shared; with it, the file is opened
for reading only and mapped privately, so what a guest writes stays in this VM and is gone with it. `size` may be less than the
file's own; a directory with a `size` gives an unnamed file there. Unlike there, a `size` beyond the end of the file is
refused, since touching such a page is a bus error in whoever does it (so do not cut a file short while a guest has it), and
the file is locked as disk images are: one VM that writes, or any number with `discard_writes`.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from aiovmm.config import PmemConfig
from aiovmm.devices.virtio.blk.lock import lock_image
from aiovmm.devices.virtio.formats import SECTOR, format_of, last_sector
from aiovmm.errors import ConfigError, HostError
from aiovmm.runtime import ofdlock
from aiovmm.runtime.forks import keep_private, let_go

__all__ = ["ALIGNMENT", "Backing", "open_backing"]

ALIGNMENT = 2 << 20
"""Of address and size, in bytes: what Linux maps with one entry, and hotplugs at least (its subsections)."""

_HINTS = {
    errno.ENOENT: "create it, for instance by `truncate -s 1G FILE`",
    errno.EACCES: "discard_writes=on needs only permission to read it",
    errno.EROFS: "discard_writes=on needs only permission to read it",
    errno.EISDIR: "a directory needs size=, for an unnamed file in it",
}


@dataclass
class Backing:
    """An open file; its first `size` bytes are the device's. `shared`: writes reach the file. Closed with `close`."""

    fd: int
    size: int
    shared: bool
    path: Path

    def check(self) -> None:
        """Raise ConfigError if somebody has cut the file short since it was opened."""
        present = os.lseek(self.fd, 0, os.SEEK_END)
        if present < self.size:
            raise _too_short(self.path, self.size, present)

    def sync(self) -> None:
        """Bring what was written to stable storage; may take long. Raises OSError."""
        os.fdatasync(self.fd)

    def close(self) -> None:
        """Idempotent. Mappings of the file stay."""
        if self.fd >= 0:
            _let_go(self.fd)
            self.fd = -1


def _let_go(fd: int) -> None:
    """Unlock and close: a mapping, or a child that was forked meanwhile, may have the file open yet."""
    ofdlock.unlock(fd)
    os.close(let_go(fd))


def open_backing(config: PmemConfig) -> Backing:
    """Open `config.file`. Raises HostError, and ConfigError for a size that cannot be the device's."""
    path, shared = config.file, not config.discard_writes
    temporary = config.size is not None and path.is_dir()
    flags = (
        os.O_CLOEXEC
        | os.O_NONBLOCK
        | (os.O_RDWR if shared or temporary else os.O_RDONLY)
        | (os.O_TMPFILE if temporary else 0)
    )
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as exc:
        code = exc.errno or 0
        raise HostError("opening a pmem file (pmem.file)", code, _HINTS.get(code, ""), str(path)) from exc
    try:
        keep_private(fd)
        lock_image(fd, str(path), shared=config.discard_writes, reader="discard_writes=on")
        if temporary:
            os.ftruncate(fd, config.size or 0)
        elif stat.S_ISREG(os.fstat(fd).st_mode):
            _refuse_other_formats(fd, path)
        return Backing(fd, _size(fd, config), shared, path)
    except BaseException as exc:
        _let_go(fd)
        if isinstance(exc, OSError) and not isinstance(exc, HostError):
            raise HostError("preparing a pmem file (pmem.file)", exc.errno or 0, path=str(path)) from exc
        raise


def _size(fd: int, config: PmemConfig) -> int:
    """Bytes of the device."""
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise ConfigError("pmem.file", f"{config.file} is neither a file nor a block device")
    present = os.lseek(fd, 0, os.SEEK_END)
    if config.size is None:
        if present == 0:
            raise ConfigError("pmem.file", f"{config.file} is empty", "truncate -s gives it a size")
        if present % ALIGNMENT:
            up = -(-present // ALIGNMENT) * ALIGNMENT
            hint = f"truncate -s {up} {config.file}, or say size={present // ALIGNMENT * ALIGNMENT} for a part of it"
            raise ConfigError("pmem.file", f"the {present} bytes of {config.file} are not a multiple of 2M", hint)
        return present
    if config.size > present:
        raise _too_short(config.file, config.size, present)
    return config.size


def _refuse_other_formats(fd: int, path: Path) -> None:
    """The guest would have the format's tables for its data, and write over them."""
    end = os.lseek(fd, 0, os.SEEK_END)
    found = format_of(os.pread(fd, SECTOR, 0), os.pread(fd, SECTOR, last_sector(end)))
    if found is not None:
        hint = "`qemu-img convert -O raw IMAGE NEW` makes one"
        raise ConfigError("pmem.file", f"{path} is a {found} image, and what is mapped is raw", hint)


def _too_short(path: Path, wanted: int, present: int) -> ConfigError:
    return ConfigError(
        "pmem.size", f"{wanted} bytes are wanted, {path} has {present}", f"truncate -s {wanted} {path} extends it"
    )
