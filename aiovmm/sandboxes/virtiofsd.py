"""The daemons behind a sandbox's volumes: a virtiofsd for each, found, started, and ended with the sandbox.

It dies with this process, however that ends (PR_SET_PDEATHSIG). What is to be read alone is so for the daemon itself: what the
guest mounts is the guest's affair. Debian 12's virtiofsd, which comes with QEMU, has no such option and wants to be root: there a
mount of its own, which can only be read, is what it serves.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from errno import ECHILD, ENOENT
from functools import lru_cache, partial
from pathlib import Path
from socket import socket

from aiovmm.config import FsConfig
from aiovmm.errors import AiovmmError, ConfigError, HostError, not_started
from aiovmm.runtime.child import Child
from aiovmm.runtime.tasks import finish, in_thread, opened_in_thread
from aiovmm.runtime.unix_listener import listen_at
from aiovmm.sandboxes.volumes import Volume, directory

__all__ = ["Served", "require", "served"]

_PLACES = ("/usr/libexec", "/usr/lib/qemu", "/usr/lib")
_PATIENCE = 2.0  # seconds until a daemon whose guest is gone is killed
_AGONY = 0.5  # seconds for one that does not serve any more to have ended
_LAST_WORDS = 4096  # bytes of its standard error that are kept
_SEPARATORS, _ESCAPED = re.compile(r"[\\,]"), r"\\\g<0>"  # of FUSE's options: behind a comma comes another one
_READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'


def require(volumes: Sequence[Volume]) -> None:
    """That they can be shared, as far as it can be known before they are. Blocking. Raises HostError, ConfigError."""
    for number, volume in enumerate(volumes):
        if volume.guest in [other.guest for other in volumes[:number]]:
            raise ConfigError("volume", f"two directories are to be at {volume.guest}", "give each a place of its own")
    for volume in volumes:
        _command(volume)


@asynccontextmanager
async def served(volumes: Sequence[Volume], folder: Path) -> AsyncIterator[Served]:
    """A daemon for each, at sockets in `folder`. Raises HostError, ConfigError."""
    all_of_them = Served(volumes, folder)
    try:
        await all_of_them.start()
        yield all_of_them
    finally:
        await finish(all_of_them.close())


class Served:
    """`devices`: of each volume, in their order. `ended(tag, error)` is called of a daemon that ends by itself; the error has its
    last words."""

    def __init__(self, volumes: Sequence[Volume], folder: Path) -> None:
        self.ended: Callable[[str, HostError], object] = lambda tag, error: None
        self._daemons = [_Daemon(volume, folder / f"fs{n}", self._has_ended) for n, volume in enumerate(volumes)]
        self.devices = tuple(FsConfig(tag=daemon.socket.name, socket=daemon.socket) for daemon in self._daemons)
        self._error: HostError | None = None  # of the first
        self._limit: asyncio.Timeout | None = None

    async def start(self) -> None:
        """Raises HostError, ConfigError."""
        for daemon in self._daemons:
            await daemon.start()

    @asynccontextmanager
    async def needed(self) -> AsyncIterator[None]:
        """What is done here is given up when a daemon ends, and so is the wait for one that does not come back. Raises HostError
        for the first of them, in place of what failed because of that."""
        try:
            async with asyncio.timeout(None if self._error is None else 0) as self._limit:
                yield
        except (TimeoutError, AiovmmError) as exc:
            if isinstance(exc, AiovmmError):
                await self._agony()
            if self._error is None:
                raise
            raise self._error from exc
        finally:
            self._limit = None

    async def _agony(self) -> None:
        following = [daemon.following for daemon in self._daemons if daemon.following is not None]
        if following and self._error is None:
            await asyncio.wait(following, timeout=_AGONY, return_when=asyncio.FIRST_COMPLETED)

    def _has_ended(self, tag: str, error: HostError) -> None:
        self._error = self._error or error
        if self._limit is not None:
            self._limit.reschedule(0)
        self.ended(tag, error)

    async def close(self) -> None:
        """Once their guest has let go of them."""
        await asyncio.gather(*(daemon.close() for daemon in self._daemons))


class _Daemon:
    def __init__(self, volume: Volume, path: Path, ended: Callable[[str, HostError], object]) -> None:
        self.socket = path
        self.following: asyncio.Task[None] | None = None
        self._volume = volume
        self._ended = ended
        self._process: Child | None = None

    async def start(self) -> None:
        command = await in_thread("virtiofsd", _command, self._volume)
        listening = partial(listen_at, self.socket, option="volume", operation="share a volume")
        with await opened_in_thread("virtiofsd: socket", socket.close, listening) as listener:
            listener.setblocking(True)
            fd = listener.fileno()
            try:
                self._process = Child([*command, f"--fd={fd}"], pass_fds=(fd,), last_words=_LAST_WORDS)
            except OSError as exc:
                raise not_started("start virtiofsd", exc, command[0]) from exc
        self.following = asyncio.get_running_loop().create_task(self._follow(self._process), name="virtiofsd")

    async def _follow(self, process: Child) -> None:
        """Until it ends by itself."""
        code = await process.wait()
        said = process.complaint(_LAST_WORDS) or "it said nothing"
        how = f"with code {code}" if code >= 0 else f"by signal {-code}"
        doing = f"virtiofsd for {self._volume.guest} has ended {how}, saying: {said}"
        self._ended(
            self.socket.name, HostError(doing, ECHILD, "the guest has that volume no more", str(self._volume.host))
        )

    async def close(self) -> None:
        """It ends when its guest does."""
        if self.following is not None:
            self.following.cancel()
            await asyncio.wait([self.following])
        await in_thread("virtiofsd: socket", partial(self.socket.unlink, missing_ok=True))
        process = self._process
        if process is not None:
            await process.aclose_after(_PATIENCE)


def _command(volume: Volume) -> list[str]:
    """Blocking. Raises HostError, ConfigError."""
    host, program = directory(volume), _find()
    rust = b"--shared-dir" in _help(program)
    if rust:
        own = ["--shared-dir", str(host), "--sandbox", "chroot" if os.geteuid() == 0 else "namespace"]
    elif os.geteuid() != 0:
        raise ConfigError(
            "volume", f"{program} runs as root alone", "apt-get install virtiofsd (Debian 13), or be root"
        )
    else:
        own = ["-o", f"source={_SEPARATORS.sub(_ESCAPED, str(host))}", "-o", "sandbox=chroot"]
    dying = ["setpriv", "--pdeathsig", "KILL", "--"]
    if not volume.readonly:
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
