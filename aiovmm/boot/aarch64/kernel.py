"""An arm64 kernel file, examined, unpacked and ready to be put into guest memory.

The kernel has no decompressor of its own: what it is packed in (gzip and others around an Image, or the EFI program that zboot
makes of it) is taken off here, once, and the Image kept in the cache. Nothing is entered but the Image's first byte.
"""

from __future__ import annotations

import enum
import os
from functools import partial
from pathlib import Path

from aiovmm.architecture import AARCH64
from aiovmm.boot.aarch64 import layout
from aiovmm.boot.aarch64.image import (
    HEADER_SIZE,
    LARGEST,
    BadImage,
    ForeignImage,
    ImageHeader,
    find_zboot,
    parse_header,
)
from aiovmm.boot.cache import CachedKernel, KernelCache, default_directory, sha256
from aiovmm.boot.detect import HEAD_SIZE, describe
from aiovmm.boot.elf import ELF_MAGIC, machine_name
from aiovmm.boot.source import BytesSource, FileIdentity, FileSource, Source, open_regular, read_at
from aiovmm.boot.window import FileWindow, OutsideFile
from aiovmm.errors import GuestFault, HostError, ImageError
from aiovmm.memory import GuestMemory
from aiovmm.runtime.dataclass import dataclass, replace

__all__ = ["Entry", "KernelImage", "KernelKind", "load_kernel"]

_WANTED = (
    "give an arm64 Linux kernel: Image, Image.gz, or an EFI zboot image (vmlinuz); "
    "`aiovmm image kernel --debian` fetches Debian's"
)
_DAMAGED = "fetch or copy it again"


class KernelKind(enum.StrEnum):
    """What kind of file it is."""

    IMAGE = "Image"
    PACKED = "packed Image"
    ZBOOT = "EFI zboot"


@dataclass(frozen=True)
class Entry:
    """Physical address of the first instruction, and the first free address after the kernel and its .bss."""

    address: int
    end: int


@dataclass(frozen=True)
class KernelImage:
    """A kernel that can be loaded, into any number of guests. Holds no file open. `compression` is what it was packed in."""

    path: str
    kind: KernelKind
    compression: str
    header: ImageHeader
    source: Source

    @property
    def entry(self) -> Entry:
        """Where it is entered: at its first byte."""
        return Entry(self.header.address, self.header.address + self.header.room(self.source.size))

    def load_into(self, memory: GuestMemory, *, fresh: bool = True) -> Entry:
        """Read it into `memory`. With `fresh` its RAM must still be all zero, else what follows the file's bytes is cleared too.

        Raises ImageError if the kernel does not fit, or if the file has changed since it was examined.
        """
        entry = self.entry
        try:
            pieces = memory.pieces(entry.address, self.source.size)
            rest = memory.pieces(entry.address + self.source.size, entry.end - entry.address - self.source.size)
        except GuestFault as exc:
            needed = entry.end - layout.RAM
            reason = f"the kernel and what has to be before it need {needed} bytes of memory, more than the guest has"
            raise ImageError(self.path, reason, f"give the guest at least {-(-needed // layout.MIB)}M") from exc
        for _, view in rest if not fresh else ():
            view[:] = bytes(len(view))
        self.source.read_into(pieces, zeroed=fresh)
        return entry


def load_kernel(
    path: str | os.PathLike[str], *, cache: str | os.PathLike[str] | None = None, unpack: bool = True
) -> KernelImage:
    """Examine the kernel at `path`, and unpack it through the cache directory `cache` (default: the user's own).

    Blocking: a first start of a packed kernel takes some 0.2-2 s, a warm one well under a millisecond. `unpack` is for
    architectures whose kernels can do that themselves.
    Raises ImageError for anything that is not an arm64 kernel, with what it is where that can be told.
    """
    kernel_cache = KernelCache(default_directory() if cache is None else Path(cache))
    name = os.fspath(path)
    with open_regular(name, "kernel") as fd:
        identity = FileIdentity.of(os.fstat(fd))
        if (cached := kernel_cache.find_by_identity(identity)) and (image := _from_cache(name, cached)):
            return image
        if identity.size > LARGEST:
            raise ImageError(name, f"{identity.size} bytes are too many for a kernel", _WANTED)
        head = read_at(fd, 0, HEAD_SIZE, name)
        if (header := _header(name, head)) is not None:
            return KernelImage(name, KernelKind.IMAGE, "none", header, FileSource(name, identity))
        _refuse_others(name, head)
        return _unpacked_kernel(name, read_at(fd, 0, identity.size, name), identity, kernel_cache)


def _header(name: str, head: bytes) -> ImageHeader | None:
    try:
        return parse_header(head)
    except BadImage as exc:
        raise ImageError(name, str(exc), _DAMAGED) from exc


def _refuse_others(name: str, head: bytes) -> None:
    """Raise ImageError for what nothing could be unpacked from."""
    from aiovmm.boot import unpack  # all the decompressors there are, which a warm start can do without

    if head.startswith(ELF_MAGIC):
        raise ImageError(name, _elf(head), _WANTED)
    if unpack.detect(head) is None and head[4:8] != b"zimg":
        raise ImageError(name, describe(head, AARCH64), _WANTED)


def _elf(head: bytes) -> str:
    machine = int.from_bytes(head[18:20], "little")
    if machine in AARCH64.elf.values():
        return "an ELF file (vmlinux), which does not say where it is to be loaded: the Image made of it does"
    return f"an ELF file for {machine_name(machine)}; this machine runs {AARCH64.title} kernels"


def _unpacked_kernel(name: str, data: bytes, identity: FileIdentity, cache: KernelCache) -> KernelImage:
    content_hash = sha256(data)
    with cache.unpacking():
        cached = cache.find(content_hash)
        image = _from_cache(name, cached) if cached else None
        if image is None:
            image = _unpack(name, data)
            assert isinstance(image.source, BytesSource)
            stored = cache.store(content_hash, bytes(image.source.data), _MARK[image.kind], image.compression)
            image = (stored and _from_cache(name, stored)) or image
        cache.remember(identity, content_hash)
    return image


def _unpack_again(name: str) -> bytes:
    """The Image in the packed file `name`, as it is now; for a kernel whose cache entry is gone."""
    with open_regular(name, "kernel") as fd:
        data = read_at(fd, 0, min(os.fstat(fd).st_size, LARGEST), name)
    source = _unpack(name, data).source
    assert isinstance(source, BytesSource)
    return bytes(source.data)


def _unpack(name: str, data: bytes) -> KernelImage:
    from aiovmm.boot import unpack

    try:
        kind, payload, compression = _payload(data)
        head = unpack.begin(compression, payload, HEAD_SIZE)
        header = parse_header(head)
        if header is None:
            what = _elf(head) if head.startswith(ELF_MAGIC) else describe(head, AARCH64)
            raise ImageError(name, f"{compression}-compressed, and in it: {what}", _WANTED)
        most = header.size or LARGEST
        image = unpack.expand(compression, payload, most)
        if len(image) > most:
            raise BadImage(f"damaged: it unpacks to more than the {most} bytes that it says")
    except ForeignImage as exc:
        raise ImageError(name, str(exc), _WANTED) from exc
    except (unpack.UnpackError, BadImage, OutsideFile) as exc:
        raise ImageError(name, str(exc), _DAMAGED) from exc
    return KernelImage(name, kind, compression, header, BytesSource(image))


def _payload(data: bytes) -> tuple[KernelKind, memoryview, str]:
    """What the packed Image in `data` is packed in, its bytes, and by what. Raises BadImage, OutsideFile."""
    from aiovmm.boot import unpack

    zboot = find_zboot(FileWindow.over(data))
    if zboot is not None:
        return KernelKind.ZBOOT, memoryview(data)[zboot.offset : zboot.offset + zboot.size], zboot.compression
    compression = unpack.detect(data)
    if compression is None:
        raise BadImage("it is no zboot image, although it says so")
    return KernelKind.PACKED, memoryview(data), compression


_MARK = {KernelKind.PACKED: b"arm64 packed", KernelKind.ZBOOT: b"arm64 zboot"}
"""What the cache keeps where it has the setup header of a bzImage: the same file is asked for by one architecture alone."""


def _from_cache(name: str, cached: CachedKernel) -> KernelImage | None:
    """The cached kernel; None if its entry went away or is of another architecture, so that it is made again."""
    kind = next((kind for kind, mark in _MARK.items() if mark == cached.header), None)
    if kind is None:
        return None
    try:
        with open_regular(cached.source.path) as fd:
            header = parse_header(read_at(fd, 0, HEADER_SIZE, cached.source.path))
    except (ImageError, HostError, BadImage):
        return None
    if header is None:
        return None
    source = replace(cached.source, remake=partial(_unpack_again, name))
    return KernelImage(name, kind, cached.compression, header, source)
