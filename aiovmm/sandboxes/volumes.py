"""Directories of the host in a sandbox, by virtiofs: what they are, and where the sockets of their daemons (virtiofsd.py) are."""

from __future__ import annotations

import fcntl
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from errno import ENOENT
from functools import partial
from pathlib import Path

from aiovmm.errors import ConfigError, HostError
from aiovmm.runtime.dataclass import dataclass
from aiovmm.runtime.flock import flocked, sweep
from aiovmm.runtime.user_dirs import runtime_directory

__all__ = ["Volume", "directory", "socket_folder"]

_GUEST = re.compile(r"(/[^/\s\"'\\:,]+)+", re.ASCII)
_TAKEN = ("/dev", "/proc", "/run", "/sys")


@dataclass(frozen=True)
class Volume:
    """The directory `host` at `guest`, an absolute path there; `readonly` for the guest."""

    host: Path
    guest: str
    readonly: bool = False

    def __post_init__(self) -> None:
        if not _GUEST.fullmatch(self.guest) or "/.." in self.guest:
            hint = "an absolute path, of letters, digits and signs that need no quotes"
            raise ConfigError("volume", f"{self.guest!r} is no place in the guest for a directory", hint)
        if self.guest in _TAKEN:
            raise ConfigError(
                "volume", f"{self.guest} is the guest's own", f"share it at a place below, {self.guest}/host"
            )

    @classmethod
    def parse(cls, text: str) -> Volume:
        """`HOST:GUEST`, `HOST:GUEST:ro`. Raises ConfigError."""
        host, colon, guest = text.removesuffix(":ro").removesuffix(":rw").rpartition(":")
        if not colon or not host:
            raise ConfigError("volume", f"{text!r} is no volume", "HOST:GUEST or HOST:GUEST:ro, like src:/src")
        return cls(Path(host), guest, text.endswith(":ro"))


def directory(volume: Volume) -> Path:
    """Of the host, that is there. Blocking. Raises HostError."""
    host = volume.host.absolute()
    if not host.is_dir():
        raise HostError("share a volume", ENOENT, "a volume is a directory that is there", str(host))
    return host


@contextmanager
def socket_folder() -> Iterator[Path]:
    """A folder for sockets, gone at the end; what killed processes have left is swept away. Raises HostError, UsageError."""
    with ExitStack() as stack:
        try:
            parent = runtime_directory() / "volumes"
            parent.mkdir(mode=0o700, exist_ok=True)
            with flocked(parent, fcntl.LOCK_EX):
                sweep(parent.iterdir(), partial(shutil.rmtree, ignore_errors=True))
                folder = parent / secrets.token_hex(8)
                folder.mkdir(mode=0o700)
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
                stack.enter_context(flocked(folder, fcntl.LOCK_EX))
        except OSError as exc:
            raise HostError(
                "share volumes", exc.errno or 0, "XDG_RUNTIME_DIR says where else their sockets may be"
            ) from exc
        yield folder
