"""Directories of the host in a sandbox, by virtiofs: a virtiofsd for each, found, started, and ended with the sandbox.

It dies with this process, however that ends (PR_SET_PDEATHSIG). What is to be read alone is so for the daemon itself: what the
guest mounts is the guest's affair. Debian 12's virtiofsd, which comes with QEMU, has no such option and wants to be root: there a
mount of its own, which can only be read, is what it serves.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from errno import ECHILD, ENOENT
from functools import lru_cache
from pathlib import Path

from aiovmm.config import FsConfig
from aiovmm.errors import ConfigError, HostError
from aiovmm.runtime.child import Child
from aiovmm.runtime.dataclass import dataclass
from aiovmm.runtime.flock import flocked
from aiovmm.runtime.tasks import finish, in_thread
from aiovmm.runtime.unix_listener import listen_at
from aiovmm.runtime.user_dirs import runtime_directory

__all__ = ["Volume", "require", "served", "socket_folder"]

_PLACES = ("/usr/libexec", "/usr/lib/qemu", "/usr/lib")
_GUEST = re.compile(r"(/[^/\s\"'\\:,]+)+", re.ASCII)
_TAKEN = ("/dev", "/proc", "/run", "/sys")
_PATIENCE = 2.0  # seconds until a daemon whose guest is gone is killed
_READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'


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


def require(volumes: Sequence[Volume]) -> None:
    """That they can be shared, as far as it can be known before they are. Blocking. Raises HostError, ConfigError."""
    for number, volume in enumerate(volumes):
        if volume.guest in [other.guest for other in volumes[:number]]:
            raise ConfigError("volume", f"two directories are to be at {volume.guest}", "give each a place of its own")
        _command(_directory(volume), volume.readonly)


def _directory(volume: Volume) -> Path:
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
                _sweep(parent)
                folder = parent / secrets.token_hex(8)
                folder.mkdir(mode=0o700)
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
                stack.enter_context(flocked(folder, fcntl.LOCK_EX))
        except OSError as exc:
            raise HostError(
                "share volumes", exc.errno or 0, "XDG_RUNTIME_DIR says where else their sockets may be"
            ) from exc
        yield folder


def _sweep(parent: Path) -> None:
    """Folders that nobody has locked are of processes that are gone, whatever runs under their numbers now."""
    for left in parent.iterdir():
        with suppress(OSError), flocked(left, fcntl.LOCK_EX | fcntl.LOCK_NB) as is_left:
            if is_left:
                shutil.rmtree(left, ignore_errors=True)


@asynccontextmanager
async def served(volumes: Sequence[Volume], directory: Path) -> AsyncIterator[tuple[FsConfig, ...]]:
    """A daemon for each, at sockets in `directory`. Raises HostError, ConfigError."""
    daemons = [_Daemon(volume, directory / f"fs{number}") for number, volume in enumerate(volumes)]
    try:
        for daemon in daemons:
            await daemon.start()
        yield tuple(FsConfig(tag=f"fs{n}", socket=daemon.socket) for n, daemon in enumerate(daemons))
    finally:
        await finish(_closed(daemons))


async def _closed(daemons: Sequence[_Daemon]) -> None:
    await asyncio.gather(*(daemon.close() for daemon in daemons))


class _Daemon:
    def __init__(self, volume: Volume, path: Path) -> None:
        self.socket = path
        self._volume = volume
        self._process: Child | None = None

    async def start(self) -> None:
        command = await in_thread("virtiofsd", _command, _directory(self._volume), self._volume.readonly)
        with listen_at(self.socket, option="volume", operation="share a volume") as listener:
            listener.setblocking(True)
            fd = listener.fileno()
            try:
                self._process = Child([*command, f"--fd={fd}"], pass_fds=(fd,))
            except OSError as exc:
                raise HostError("start virtiofsd", exc.errno or 0, path=command[0]) from exc

    async def close(self) -> None:
        """It ends when its guest does."""
        with suppress(FileNotFoundError):
            self.socket.unlink()
        process = self._process
        if process is not None:
            try:
                with suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), _PATIENCE)
            finally:
                await process.aclose()


def _command(host: Path, readonly: bool) -> list[str]:
    program = _find()
    rust = b"--shared-dir" in _help(program)
    if rust:
        own = ["--shared-dir", str(host), "--sandbox", "chroot" if os.geteuid() == 0 else "namespace"]
    elif os.geteuid() != 0:
        raise ConfigError(
            "volume", f"{program} runs as root alone", "apt-get install virtiofsd (Debian 13), or be root"
        )
    else:
        own = ["-o", f"source={host}", "-o", "sandbox=chroot"]
    dying = ["setpriv", "--pdeathsig", "KILL", "--"]
    if not readonly:
        return [*dying, program, *own]
    if rust and b"--readonly" in _help(program):
        return [*dying, program, *own, "--readonly"]
    if os.geteuid() != 0:
        raise ConfigError("volume", f"{program} cannot keep a guest from writing", "a newer virtiofsd can; or be root")
    if str(host) == "/":
        raise ConfigError(
            "volume", "/ cannot be shared to be read alone here", "share what is in it, or use a newer virtiofsd"
        )
    alone = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _READ_ONLY, "volume", str(host)]
    return [*dying, *alone, program, *own]


def _find() -> str:
    found = shutil.which("virtiofsd") or shutil.which("virtiofsd", path=os.pathsep.join(_PLACES))
    if found is None:
        hint = "apt-get install virtiofsd, or qemu-system-common in Debian 12"
        raise HostError("share a volume", ENOENT, hint, "virtiofsd")
    return found


@lru_cache
def _help(program: str) -> bytes:
    try:
        return subprocess.run([program, "--help"], capture_output=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError) as exc:
        raise HostError("start virtiofsd", getattr(exc, "errno", None) or ECHILD, path=program) from exc
