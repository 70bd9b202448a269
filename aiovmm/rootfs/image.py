"""Image: what the root of a sandbox is made of, given by where it comes from, and made into an EROFS image when it is needed.

    image = Image.from_oci("layout/")
    async with aiovmm.sandbox(image) as vm: ...
    built = await image.build()           # ahead of the first use; else that does it

An image is made once, by a process of its own, and kept (cache.py); every guest reads the same file.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiovmm import architecture
from aiovmm.errors import HostError, ImageError, UsageError, not_started
from aiovmm.rootfs.cache import Cache, Held, Lease, Made
from aiovmm.rootfs.kinds import file_system_of, kind_of
from aiovmm.rootfs.limits import Limits
from aiovmm.rootfs.source import Identity, Source
from aiovmm.runtime.arguments import a_path
from aiovmm.runtime.child import Child
from aiovmm.runtime.tasks import in_thread, opened_in_thread

if TYPE_CHECKING:
    from aiovmm.rootfs.registry import Reference

__all__ = ["BuiltImage", "Image", "ImageConfig"]

_POLL = 0.05  # seconds between two looks at whether another has made it
_LAST_WORDS = 2000
_MOST_WORDS = 16 << 20
_PULLS = ("missing", "always", "never")


@dataclass(frozen=True)
class ImageConfig:
    """What an image says of how it is run; empty for a directory or a plain tar. `env`: variables by name."""

    env: dict[str, str]
    cmd: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    user: str = ""
    workdir: str = ""

    @property
    def command(self) -> tuple[str, ...]:
        """What it runs by itself: its entry point, and its command as arguments."""
        return self.entrypoint + self.cmd


class BuiltImage:
    """A file system of `type` (erofs, unless it was given as it is) in the file `path`, of `size` bytes. What is in the cache
    stays there as long as this is not closed; `digest` is its SHA-256, "" for what is not. `devices` and `xattrs` tell what was
    left out: how many device nodes, and names of attributes."""

    def __init__(
        self, path: Path, type: str, config: ImageConfig, made: Made | None = None, lease: Lease | None = None
    ):
        left_out: dict[str, Any] = made.about["left_out"] if made else {"devices": 0, "xattrs": ()}
        self.path, self.type, self.config = path, type, config
        self.size = os.stat(path).st_size
        self.digest = made.content if made else ""
        self.devices: int = left_out["devices"]
        self.xattrs: tuple[str, ...] = tuple(left_out["xattrs"])
        self.about = made.about if made else {}
        self._lease = lease

    def close(self) -> None:
        """It may be pruned from now on. Idempotent."""
        if self._lease is not None:
            self._lease.close()


def _built(made: Made, lease: Lease) -> BuiltImage:
    said = made.about["configuration"]
    config = ImageConfig(
        dict(said["env"]), tuple(said["cmd"]), tuple(said["entrypoint"]), said["user"], said["workdir"]
    )
    return BuiltImage(lease.path, "erofs", config, made, lease)


class Image:
    """Where a root file system comes from. Nothing is read until it is built.

    `limits`: what it may be at most, unpacked. `cache`: a directory of one's own for built images.
    """

    def __init__(self, source: Source, *, limits: Limits | None = None, cache: str | os.PathLike[str] | None = None):
        if not isinstance(limits, Limits | None):
            raise UsageError(f"limits={limits!r} is no Limits: like Limits(size=1 << 30)")
        self._source = source
        self._limits = limits or Limits()
        self._cache = None if cache is None else Path(a_path(cache, "cache"))
        self._reference: Reference | None = None
        self._pull = "missing"

    def __repr__(self) -> str:
        return f"Image.from_{self._source.kind}({self._source.path!r})"

    @classmethod
    def from_directory(cls, path: str | os.PathLike[str], **options: Any) -> Image:
        """All below `path`, as it is when the image is built. Files of who builds it are root's in the guest."""
        return cls(Source("directory", _absolute(path), _architecture()), **options)

    @classmethod
    def from_tar(cls, path: str | os.PathLike[str], **options: Any) -> Image:
        """A tar archive of a root: plain or compressed by gzip, zstd, xz or bzip2."""
        return cls(Source("tar", _absolute(path), _architecture()), **options)

    @classmethod
    def from_oci(cls, path: str | os.PathLike[str], *, tag: str | None = None, **options: Any) -> Image:
        """An OCI image layout, or what `docker save` and `podman save` write: a directory, or one tar archive, which may be
        compressed by gzip, zstd, xz or bzip2. `tag` (a name, or a digest) chooses where there are several."""
        return cls(Source("oci", _absolute(path), _architecture(), tag), **options)

    @classmethod
    def from_docker_registry(
        cls,
        name: str,
        *,
        username: str = "",
        password: str = "",
        tls_verify: bool = True,
        pull: str = "missing",
        **options: Any,
    ) -> Image:
        """`name` as docker has it, like "debian:12" or "registry.example/team/image@sha256:...", copied by skopeo when it is
        built. `password` may be a token. `pull`: "missing" copies what is not here yet, "always" what its tag names now, "never"
        nothing. Raises UsageError."""
        from aiovmm.rootfs.registry import Reference  # for who asks one

        if pull not in _PULLS:
            raise UsageError(f"pull={pull!r}: one of {', '.join(_PULLS)}")
        image = cls(Source("registry", name, _architecture()), **options)
        image._reference, image._pull = Reference(name, username, password, tls_verify), pull
        return image

    @classmethod
    def from_file_system(cls, path: str | os.PathLike[str]) -> Image:
        """A file with a file system that the guest's kernel knows: EROFS, ext4 or squashfs. It is only read."""
        return cls(Source("file_system", _absolute(path), _architecture()))

    @classmethod
    def of(cls, what: Image | str | os.PathLike[str]) -> Image:
        """`what` itself, or by what is at that path: an OCI layout, a directory, a file system, else a tar archive (of a layout
        or a root). Blocking, as far as it has to look. Raises ImageError."""
        if isinstance(what, Image):
            return what
        return cls(Source(kind_of(Path(a_path(what, "image"))), _absolute(what), _architecture()))

    async def build(self) -> BuiltImage:
        """The image in the cache, made if it is not there. Raises ImageError, HostError."""
        if self._source.kind == "file_system":
            path = Path(self._source.path)
            return BuiltImage(path, await in_thread("image", file_system_of, path), ImageConfig({}))
        cache = Cache(self._cache)
        if self._reference is not None:
            return await self._build_from_registry(cache, self._reference)
        identity = await in_thread("image", self._source.identity, self._limits.entries)
        while True:
            if (found := await _found(cache, identity.key)) is not None:
                return _built(*found)
            lock = await opened_in_thread("image", _close_if_held, cache.try_lock, identity.key)
            if lock is not None:
                break
            await asyncio.sleep(_POLL)
        try:
            found = await _found(cache, identity.key) or await self._make(
                cache, identity
            )  # whoever had the lock may have
        except BaseException:
            await in_thread("image", lock.close)
            raise
        built = _built(*found)
        try:
            await in_thread("image", lock.close)
        except BaseException:
            built.close()
            raise
        return built

    async def _build_from_registry(self, cache: Cache, reference: Reference) -> BuiltImage:
        """The name's last image is remembered; a new one is copied into a layout that lives as long as that is read."""
        from aiovmm.rootfs.registry import copy_from_registry

        key = self._source.key(reference.name)
        found = None if self._pull == "always" else await _found(cache, key)
        if found is not None:
            return _built(*found)
        if self._pull == "never":
            raise ImageError(reference.name, "is not here, and is not to be copied (pull='never')")
        scratch = await opened_in_thread("image", Held.close, cache.begin_layout)
        try:
            layout = scratch.path / "layout"
            await copy_from_registry(reference, self._source.architecture, layout, self._limits.size)
            built = await Image.from_oci(layout, limits=self._limits, cache=self._cache).build()
        except BaseException:
            await in_thread("image", scratch.close)
            raise
        try:
            await in_thread("image", scratch.close)
            await in_thread("image", cache.remember, key, built.about)
        except BaseException:
            built.close()
            raise
        return built

    async def _make(self, cache: Cache, identity: Identity) -> tuple[Made, Lease]:
        held = await opened_in_thread("image", Held.close, cache.begin)
        try:
            about = await self._told_by_maker(held.fd)
            later = await in_thread("image", self._source.identity, self._limits.entries)
            key = identity.key if identity.settled and later == identity else None
            return await opened_in_thread("image", _let_go, _completed, cache, held, key, about)
        except BaseException:
            await in_thread("image", held.close)
            raise

    async def _told_by_maker(self, fd: int) -> dict[str, Any]:
        limits = {"size": self._limits.size, "entries": self._limits.entries, "seconds": self._limits.seconds}
        command = (sys.executable, "-P", "-m", "aiovmm.rootfs", self._source.to_json(), str(fd), json.dumps(limits))
        try:
            maker = Child(command, pass_fds=(fd,), env=_environment(), held=True, stdout=True, stderr=True)
        except OSError as exc:
            raise not_started("start the maker of images", exc, sys.executable) from exc
        try:
            code = await maker.wait()
            return self._checked(maker.said(1, _MOST_WORDS), maker.said(2, _LAST_WORDS), code)
        finally:
            await maker.aclose()

    def _checked(self, words: bytes, errors: bytes, code: int) -> dict[str, Any]:
        try:
            said: dict[str, Any] = json.loads(words)
        except ValueError:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
            last = errors.decode(errors="replace").strip().rpartition("\n")[2]
            reason = f"cannot be made into an image: its maker {how}" + (f", saying: {last}" if last else "")
            raise ImageError(self._source.path, reason) from None
        if said.get("error") == "image":
            raise ImageError(said["path"], said["reason"], said["hint"])
        if said.get("error") == "host":
            raise HostError("make an image", said["errno"], path=said["path"])
        return said


async def _found(cache: Cache, key: str) -> tuple[Made, Lease] | None:
    return await opened_in_thread("image", _let_go, cache.find, key)


def _let_go(found: tuple[Made, Lease] | None) -> None:
    if found is not None:
        found[1].close()


def _completed(cache: Cache, held: Held, key: str | None, about: dict[str, Any]) -> tuple[Made, Lease]:
    """Blocking. `held` is closed then."""
    try:
        return cache.complete(held.fd, held.path, key, about)
    finally:
        held.close()


def _close_if_held(lock: Held | None) -> None:
    if lock is not None:
        lock.close()


def _absolute(path: str | os.PathLike[str]) -> str:
    return os.path.abspath(a_path(path, "path"))


def _architecture() -> str:
    return architecture.host().debian


def _environment() -> dict[str, str]:
    """This program's, in which its own modules are found."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
