"""Images that were made, each once, in `$XDG_CACHE_HOME/aiovmm/images`. Any number of processes use it at once.

    content/SHA256.erofs    an image, complete and never changed; who uses one has a shared lock on it
    sources/KEY.json        which of them a source made, and what is to be said of it
    making/*                one that is being made; its maker has a lock on it, and one without a maker is swept away
    layouts/*               what is copied from a registry to be made into one; the same goes for it
    locks/*                 who makes the image of a source has one, and others wait for what he makes

Whoever is killed in the middle leaves something in making/ or layouts/ at most: the rest appears by a rename. A lock ends with
its process.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiovmm.errors import HostError
from aiovmm.runtime.flock import sweep
from aiovmm.runtime.new_file import appearing
from aiovmm.runtime.user_dirs import cache_directory

__all__ = ["Cache", "Held", "Lease", "Made"]

_HINT = "XDG_CACHE_HOME says where else images may be kept"


@dataclass(frozen=True)
class Made:
    """What is known of an image in the cache: `content` is its SHA-256; `about` what its maker said."""

    content: str
    about: dict[str, Any]


class Lease:
    """An image that stays in the cache as long as this is not closed. `path`, and `size` in bytes."""

    def __init__(self, fd: int, path: Path) -> None:
        self.path = path
        self.size = os.fstat(fd).st_size
        self._fd = fd

    def close(self) -> None:
        """Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


class Held:
    """A descriptor with a lock, and what is at `path` as long as that is held."""

    def __init__(self, fd: int, path: Path | None = None) -> None:
        self.fd = fd
        self.path = path or Path()
        self._remove = path is not None

    def close(self) -> None:
        """Idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            if self._remove:
                _discard(self.path)
            fcntl.flock(fd, fcntl.LOCK_UN)  # a child that was forked meanwhile may have it open yet
            os.close(fd)


class Cache:
    """Blocking, but for `try_lock` never for long. Methods raise HostError for what the host refuses."""

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory or cache_directory() / "images"

    def find(self, key: str) -> tuple[Made, Lease] | None:
        """What the source `key` made, if it is there."""
        try:
            said = json.loads((self.directory / "sources" / f"{key}.json").read_text())
            made = Made(said["content"], said)
        except (OSError, ValueError, KeyError, TypeError):  # not there; or the disk was full, long ago
            return None
        lease = self.lease(made.content)
        return None if lease is None else (made, lease)

    def lease(self, content: str) -> Lease | None:
        """The image with that SHA-256, if it is there."""
        path = self._image(content)
        while True:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            except OSError as exc:
                raise HostError("open an image", exc.errno or 0, _HINT, str(path)) from exc
            fcntl.flock(fd, fcntl.LOCK_SH)  # `prune` has its lock for a moment only
            if os.fstat(fd).st_nlink:
                with suppress(OSError):
                    os.utime(fd)  # for `prune`
                return Lease(fd, path)
            os.close(fd)  # it was pruned just now

    def try_lock(self, key: str) -> Held | None:
        """The lock for making the image of `key`; None while another has it."""
        with self._told("lock an image"):
            path = self.folder("locks") / key[:2]
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return Held(fd)

    def begin(self) -> Held:
        """An empty file to make an image in, which is locked. What killed makers have left is swept away."""
        with self._told("make an image"):
            folder = self.folder("making")
            _sweep(folder)
            while True:
                path = folder / secrets.token_hex(8)
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                fcntl.flock(fd, fcntl.LOCK_EX)
                if os.fstat(fd).st_nlink:  # else another has swept it away before it was locked
                    return Held(fd, path)
                os.close(fd)

    def begin_layout(self) -> Held:
        """An empty directory for an OCI layout that is copied, which is locked. What killed copiers have left is swept away."""
        with self._told("copy an image"):
            folder = self.folder("layouts")
            sweep(folder.iterdir(), _discard)
            while True:
                path = folder / secrets.token_hex(8)
                path.mkdir(mode=0o700)
                with suppress(FileNotFoundError):  # another has swept it away before it was locked
                    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                    fcntl.flock(fd, fcntl.LOCK_EX)
                    if os.fstat(fd).st_nlink:
                        return Held(fd, path)
                    os.close(fd)

    def complete(self, fd: int, path: Path, key: str | None, about: dict[str, Any]) -> tuple[Made, Lease]:
        """The image at `path`, which `fd` has locked, is whole. It is remembered for the source `key`, if there is one."""
        made = Made(about["content"], about)
        with self._told("keep an image"):
            target = self.folder("content") / f"{made.content}.erofs"
            os.chmod(path, 0o400)
            fcntl.flock(fd, fcntl.LOCK_SH)  # the same file, from now on under the name that others have leases by
            while True:
                with suppress(FileExistsError):
                    os.link(path, target)
                lease = self.lease(made.content)
                if lease is not None:
                    break
            path.unlink()
            if key is not None:
                self.remember(key, about)
        return made, lease

    def remember(self, key: str, about: dict[str, Any]) -> None:
        """The source `key` makes the image that `about` is of."""
        with self._told("keep an image"):
            self._write(self.folder("sources") / f"{key}.json", json.dumps(about))

    def prune(self, unused_for: float = 0.0) -> tuple[int, int]:
        """Remove images that nobody uses, and nobody has begun to use for so many seconds. How many, and their bytes."""
        count = size = 0
        with self._told("prune images"):
            _sweep(self.folder("making"))
            sweep(self.folder("layouts").iterdir(), _discard)
            for path in sorted(self.folder("content").glob("*.erofs")):
                if (removed := _remove(path, time.time() - unused_for)) is not None:
                    count, size = count + 1, size + removed
            for path in self.folder("sources").glob("*.json"):
                with suppress(OSError, ValueError, KeyError, TypeError):
                    if not self._image(json.loads(path.read_text())["content"]).exists():
                        path.unlink()
        return count, size

    def _image(self, content: str) -> Path:
        return self.directory / "content" / f"{content}.erofs"

    def folder(self, name: str) -> Path:
        """One of its folders, made if it is not there."""
        path = self.directory / name
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    def _write(self, path: Path, text: str) -> None:
        with appearing(path, replacing=True) as fd, open(fd, "w", closefd=False) as out:
            out.write(text)

    @contextmanager
    def _told(self, operation: str) -> Iterator[None]:
        try:
            yield
        except HostError:
            raise
        except OSError as exc:
            raise HostError(operation, exc.errno or 0, _HINT, str(self.directory)) from exc


def _sweep(folder: Path) -> None:
    for path in folder.iterdir():
        _remove(path, float("inf"))


def _discard(path: Path) -> None:
    """A file or a directory, if it is there."""
    with suppress(OSError):
        path.unlink()
        return
    shutil.rmtree(path, ignore_errors=True)


def _remove(path: Path, before: float) -> int | None:
    """Unlink a file that nobody has locked, and that was not touched since; its bytes on the disk."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = os.fstat(fd)
        if status.st_mtime > before:
            return None
        os.unlink(path)
        return status.st_blocks * 512
    except OSError:  # in use; or another was faster
        return None
    finally:
        os.close(fd)
