"""Unpacked kernels, kept by the SHA-256 of the packed file, so that a warm start neither unpacks nor hashes.

    DIR/HASH.vmlinux   the unpacked kernel, a sparse file
    DIR/HASH.json      the setup header, the unpacked file's own SHA-256 and the identity (inode, size, times) it had then
    DIR/by-stat/KEY    HASH, where KEY is made of the packed file's identity: the shortcut past hashing

An unpacked file whose identity is the recorded one is taken as it is. Any other (copied, restored, damaged) is hashed
again, and thrown away if it is not what was stored. Everything is written to a temporary name and renamed. A directory
that cannot be used costs time, never an error. Delete it at will; the newest KEPT kernels stay by themselves.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aiovmm.boot.source import BytesSource, FileIdentity, FileSource
from aiovmm.errors import ImageError
from aiovmm.runtime.dataclass import dataclass
from aiovmm.runtime.user_dirs import find_cache_directory

__all__ = ["KEPT", "CachedKernel", "KernelCache", "default_directory", "sha256"]

KEPT = 32
"""Kernels: some GB at most. Who boots whatever is sent to him would fill his disk."""

_SHORTCUTS = 32 * KEPT
_FORMAT = 1
_HOLE = 16384  # bytes; smaller holes would cost more system calls than they save copying
_BEGUN = ".tmp-"
_TO_LOCK = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
_SETTLED_NS = 2_000_000_000  # a file changed less than this ago may change again within its timestamps' granularity


@dataclass(frozen=True)
class CachedSource(FileSource):
    """An unpacked kernel in the cache, known by its content: another process may put the same one into its place, or delete it,
    at any time before a guest, or a guest's reset, reads it. `remake` gives its bytes anew, from the packed file."""

    sha256: str = ""
    remake: Callable[[], bytes] | None = None

    def read_into(self, pieces: list[tuple[int, memoryview]], *, zeroed: bool = False) -> None:
        try:
            super().read_into(pieces, zeroed=zeroed)
        except ImageError:
            BytesSource(self._again()).read_into(pieces)

    def _again(self) -> bytes:
        """The same bytes from what is there now. Raises ImageError if they are nowhere."""
        with contextlib.suppress(OSError):
            data = Path(self.path).read_bytes()
            if sha256(data) == self.sha256:
                return data
        if self.remake is None or sha256(data := self.remake()) != self.sha256:
            raise ImageError(self.path, "changed after it was examined", "load it again")
        return data


@dataclass(frozen=True)
class CachedKernel:
    """An unpacked kernel in the cache: its bytes, the setup header of the image it came from, how that was packed."""

    source: CachedSource
    header: bytes
    compression: str


def default_directory() -> Path | None:
    """`$XDG_CACHE_HOME/aiovmm/kernels`, by default under ~/.cache; None for a user without a home."""
    root = find_cache_directory()
    return root / "kernels" if root is not None else None


class KernelCache:
    """The cache in `directory`; without one nothing is kept."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory

    @property
    def directory(self) -> Path:
        """Raises FileNotFoundError if there is none."""
        if self._directory is None:
            raise FileNotFoundError(errno.ENOENT, "this user has no home directory")
        return self._directory

    def find_by_identity(self, identity: FileIdentity) -> CachedKernel | None:
        """The kernel unpacked from the file that has `identity`: two small reads, no hashing."""
        try:
            return self.find((self._by_stat / _key(identity)).read_text().strip())
        except (OSError, UnicodeDecodeError):
            return None

    def find(self, content_hash: str) -> CachedKernel | None:
        """The kernel unpacked from the file with this SHA-256 (hex), if it is here and sound."""
        try:
            import json  # for kernels that are packed

            meta = json.loads((self.directory / f"{content_hash}.json").read_bytes())
            if meta["format"] != _FORMAT:
                return None
            source = self._sound(content_hash, meta)
            if source is None:
                return None
            return CachedKernel(source, bytes.fromhex(meta["header"]), str(meta["compression"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    @contextlib.contextmanager
    def unpacking(self) -> Iterator[None]:
        """One process at a time unpacks; who waited finds what the other has stored. Without a directory all unpack."""
        import fcntl

        fd = -1
        with contextlib.suppress(OSError):
            self.directory.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if fd >= 0:
                with contextlib.suppress(OSError):
                    fcntl.flock(fd, fcntl.LOCK_UN)  # a child that was forked meanwhile may have it open yet
                os.close(fd)

    def store(self, content_hash: str, vmlinux: bytes, header: bytes, compression: str) -> CachedKernel | None:
        """Keep `vmlinux`. None if the directory cannot be written."""
        from aiovmm.runtime.newest import keep_newest  # for cold starts only

        try:
            path = self._vmlinux(content_hash)
            _write_atomically(path, vmlinux, sparse=True)
            source = CachedSource(str(path), FileIdentity.of(os.stat(path)), sha256(vmlinux))
            meta = {
                "format": _FORMAT,
                "header": header.hex(),
                "compression": compression,
                "sha256": source.sha256,
                "identity": dict(vars(source.identity)),
            }
            self._write_meta(content_hash, meta)
            keep_newest(self.directory, KEPT)
        except OSError:
            return None
        return CachedKernel(source, header, compression)

    def remember(self, identity: FileIdentity, content_hash: str) -> None:
        """Note that the file with `identity` has this content, unless it is so new that it may still be changing."""
        from aiovmm.runtime.newest import keep_newest

        if time.time_ns() - max(identity.ctime_ns, identity.mtime_ns) > _SETTLED_NS:
            with contextlib.suppress(OSError):  # without the shortcut the next start hashes again
                _write_atomically(self._by_stat / _key(identity), content_hash.encode())
                keep_newest(self._by_stat, _SHORTCUTS)

    @property
    def _by_stat(self) -> Path:
        return self.directory / "by-stat"

    def _vmlinux(self, content_hash: str) -> Path:
        return self.directory / f"{content_hash}.vmlinux"

    def _write_meta(self, content_hash: str, meta: dict[str, Any]) -> None:
        import json

        _write_atomically(self.directory / f"{content_hash}.json", json.dumps(meta).encode())

    def _sound(self, content_hash: str, meta: dict[str, Any]) -> CachedSource | None:
        path = self._vmlinux(content_hash)
        identity = FileIdentity.of(os.stat(path))
        if vars(identity) != meta["identity"]:
            if sha256(path.read_bytes()) != meta["sha256"]:
                return None
            with contextlib.suppress(OSError):  # only saves the next start this hashing
                self._write_meta(content_hash, meta | {"identity": dict(vars(identity))})
        return CachedSource(str(path), identity, str(meta["sha256"]))


def _key(identity: FileIdentity) -> str:
    numbers = (identity.device, identity.inode, identity.size, identity.mtime_ns, identity.ctime_ns)
    return "-".join(f"{n:x}" for n in numbers)


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256."""
    import hashlib  # loads OpenSSL, which a warm start can do without

    return hashlib.sha256(data).hexdigest()


def _write_atomically(path: Path, data: bytes, *, sparse: bool = False) -> None:
    from aiovmm.runtime.flock import sweep  # for cold starts only

    path.parent.mkdir(parents=True, exist_ok=True)
    left = path.parent.glob(f"{_BEGUN}*")  # what killed writers have left, each as large as a kernel
    sweep(left, os.unlink, _TO_LOCK)
    fd, name = _begun(path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            if sparse:
                _write_sparse(file.fileno(), data)
            else:
                file.write(data)
                file.flush()
            os.fsync(file.fileno())  # or a crash could leave the name with no content behind it
            os.replace(name, path)  # before it is unlocked
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def _begun(folder: Path) -> tuple[int, str]:
    """A new file, which is locked for as long as it is written."""
    import tempfile  # for cold starts only, like hashlib

    while True:
        fd, name = tempfile.mkstemp(dir=folder, prefix=_BEGUN)
        with contextlib.suppress(OSError):  # where nobody can lock nobody sweeps
            fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:  # else another has swept it away before it was locked
            return fd, name
        os.close(fd)


def _write_sparse(fd: int, data: bytes) -> None:
    """Leave holes for zeros. A third of an unpacked kernel is .bss and padding, which then costs guests no memory."""
    os.ftruncate(fd, len(data))
    zeros = bytes(_HOLE)
    for start in range(0, len(data), _HOLE):
        block = data[start : start + _HOLE]
        if block != zeros[: len(block)] and os.pwrite(fd, block, start) != len(block):
            raise OSError(errno.ENOSPC, "short write")
