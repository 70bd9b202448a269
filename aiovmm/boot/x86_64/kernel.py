"""A kernel file, examined, unpacked and ready to be put into guest memory.

A bzImage is unpacked here, on the host, and the vmlinux inside is loaded at its own physical addresses and entered at its
64-bit entry: the guest does not spend its time on it, and the work is done once for many guests. That skips the
decompressor's address randomisation (KASLR): the kernel runs where it was linked. `unpack=False` loads the image packed
and lets the guest unpack and randomise it; so are images with LZO, and boot-protocol programs without a vmlinux inside.
A bare ELF kernel is entered by PVH if it has that note, else by the 64-bit entry; a 32-bit one (Xen's) by PVH alone.
"""

from __future__ import annotations

import enum
import os
from functools import partial
from pathlib import Path

from aiovmm.architecture import X86_64
from aiovmm.boot.cache import CachedKernel, KernelCache, default_directory, sha256
from aiovmm.boot.detect import HEAD_SIZE, describe
from aiovmm.boot.elf import ELF_MAGIC, ElfError
from aiovmm.boot.source import BytesSource, FileIdentity, FileSource, Source, open_regular, read_at, window
from aiovmm.boot.window import FileWindow
from aiovmm.boot.x86_64 import layout
from aiovmm.boot.x86_64.elf_kernel import ElfImage, ElfSegment, parse
from aiovmm.boot.x86_64.params import BOOT_FLAG, HEADER_MAGIC, HEADER_OFFSET, PARAGRAPH, SetupHeader
from aiovmm.errors import GuestFault, HostError, ImageError
from aiovmm.memory import GuestMemory
from aiovmm.runtime.dataclass import dataclass, replace

__all__ = ["BootProtocol", "Entry", "KernelImage", "KernelKind", "load_kernel"]

_HEADER_MIN = 0x260  # up to pref_address: a 2.10 header, the oldest with a relocatable 64-bit kernel
_OLDEST = 0x20A
_WANTED = "give a Linux bzImage (vmlinuz), a vmlinux, or an ELF kernel with a PVH entry, for x86-64"
_LARGEST = 1 << 30  # bytes of a bzImage
_ENTRY64_OFFSET = 0x200  # boot.rst, "64-bit Boot Protocol"


class KernelKind(enum.StrEnum):
    """What kind of file it is."""

    BZIMAGE = "bzImage"
    ELF = "ELF"
    PVH = "PVH ELF"


class BootProtocol(enum.Enum):
    """How the kernel is entered."""

    LINUX64 = "linux64"
    PVH = "pvh"


@dataclass(frozen=True)
class Entry:
    """Physical address of the first instruction, the protocol that holds there, and the first free address after the kernel."""

    address: int
    protocol: BootProtocol
    end: int


@dataclass(frozen=True)
class KernelImage:
    """A kernel that can be loaded, into any number of guests. Holds no file open."""

    path: str
    kind: KernelKind
    compression: str
    header: SetupHeader | None
    elf: ElfImage
    source: Source

    @property
    def entry(self) -> Entry:
        """Where and how it is entered: by PVH if it is a bare ELF file that can be, or if there is no other entry."""
        pvh, entry = self.elf.pvh_entry, self.elf.entry
        if pvh is not None and (self.header is None or entry is None):
            return Entry(pvh, BootProtocol.PVH, self.elf.end)
        assert entry is not None, "parsing makes sure that there is an entry"
        return Entry(entry, BootProtocol.LINUX64, self.elf.end)

    def load_into(self, memory: GuestMemory, *, fresh: bool = True) -> Entry:
        """Read the segments into `memory`. With `fresh` its RAM must still be all zero, else the .bss is cleared too.

        Raises ImageError if the kernel does not fit, or if the file has changed since it was examined.
        """
        if self.entry.address >= layout.RAM_ABOVE_4G:
            raise ImageError(self.path, f"the kernel's entry {self.entry.address:#x} lies above 4 GiB", "link it lower")
        pieces: list[tuple[int, memoryview]] = []
        for segment in self.elf.segments:
            if any(segment.address < end and start < segment.end for start, end in layout.BOOT_AREAS):
                raise ImageError(self.path, _in_the_way(segment), "link it to run at 1 MiB or above")
            try:
                places = memory.pieces(segment.address, segment.file_size)
                rest = memory.pieces(segment.address + segment.file_size, segment.memory_size - segment.file_size)
            except GuestFault as exc:
                raise ImageError(self.path, _no_room(segment), "give the guest more memory") from exc
            pieces += [(segment.offset + offset, view) for offset, view in places]
            for _, view in rest if not fresh else ():
                view[:] = bytes(len(view))
        self.source.read_into(pieces, zeroed=fresh)
        return self.entry


def load_kernel(
    path: str | os.PathLike[str], *, cache: str | os.PathLike[str] | None = None, unpack: bool = True
) -> KernelImage:
    """Examine the kernel at `path`, and unpack it through the cache directory `cache` (default: the user's own).

    Blocking: a first start of a compressed kernel takes some 0.2-2 s, a warm one well under a millisecond.
    Raises ImageError for anything that is not an x86-64 kernel, with what it is where that can be told.
    """
    kernel_cache = KernelCache(default_directory() if cache is None else Path(cache))
    name = os.fspath(path)
    with open_regular(name, "kernel") as fd:
        identity = FileIdentity.of(os.fstat(fd))
        if unpack and (cached := kernel_cache.find_by_identity(identity)) and (image := _from_cache(name, cached)):
            return image
        head = read_at(fd, 0, HEAD_SIZE, name)
        if head.startswith(ELF_MAGIC):
            return _elf_kernel(name, fd, FileSource(name, identity))
        header = _setup_header(name, head, identity.size)
        if not unpack or _unpacks_itself(name, fd, header):
            return _packed_kernel(name, header, FileSource(name, identity))
        return _unpacked_kernel(name, fd, header, identity, kernel_cache)


def _elf_kernel(name: str, fd: int, source: FileSource) -> KernelImage:
    image = _parse_elf(name, window(fd, source.size, name))
    kind = KernelKind.ELF if image.pvh_entry is None else KernelKind.PVH
    return KernelImage(name, kind, "none", None, image, source)


def _setup_header(name: str, head: bytes, size: int) -> SetupHeader:
    """The header of a bzImage that is all there: `head` is how its `size` bytes begin. Raises ImageError."""
    if head[0x202:0x206] != HEADER_MAGIC or int.from_bytes(head[0x1FE:0x200], "little") != BOOT_FLAG:
        raise ImageError(name, describe(head, X86_64), _WANTED)
    end = 0x202 + head[0x201]
    if end < _HEADER_MIN or len(head) < end:
        raise ImageError(name, "truncated, or a Linux older than boot protocol 2.10")
    header = SetupHeader(head[HEADER_OFFSET:end])
    if header.version < _OLDEST:
        major, minor = divmod(header.version, 256)
        raise ImageError(
            name, f"speaks boot protocol {major}.{minor}: it needs a BIOS, which this machine has not", _WANTED
        )
    whole = header.setup_size + header.protected_size
    if size <= whole - PARAGRAPH:
        raise ImageError(name, f"truncated: {size} of {whole} bytes of the kernel", "fetch or copy it again")
    return header


def _unpacks_itself(name: str, fd: int, header: SetupHeader) -> bool:
    from aiovmm.boot import unpack  # all the decompressors there are, which a warm start can do without

    offset, length = header.payload
    return length == 0 or unpack.detect(read_at(fd, offset, 16, name)) == "lzo"


def _packed_kernel(name: str, header: SetupHeader, source: FileSource) -> KernelImage:
    """The protected-mode part as it is, entered at its own 64-bit entry."""
    if not header.is_64bit:
        raise ImageError(name, "a 32-bit kernel: it has no 64-bit entry point", "give an x86-64 kernel")
    address = header.pref_address or 0x100000
    size = source.size - header.setup_size
    segment = ElfSegment(header.setup_size, size, address, max(size, header.init_size))
    image = ElfImage((segment,), address + _ENTRY64_OFFSET, None)
    return KernelImage(name, KernelKind.BZIMAGE, "packed", header, image, source)


def _unpacked_kernel(
    name: str, fd: int, header: SetupHeader, identity: FileIdentity, cache: KernelCache
) -> KernelImage:
    if identity.size > _LARGEST:
        raise ImageError(name, f"{identity.size} bytes are too many for a kernel")
    data = read_at(fd, 0, identity.size, name)
    content_hash = sha256(data)
    with cache.unpacking():
        cached = cache.find(content_hash)
        image = _from_cache(name, cached) if cached else None
        if image is None:
            image = _unpack(name, data, header)
            assert isinstance(image.source, BytesSource)
            stored = cache.store(content_hash, bytes(image.source.data), header.raw, image.compression)
            image = (stored and _from_cache(name, stored)) or image
        cache.remember(identity, content_hash)
    return image


def _unpack_again(name: str) -> bytes:
    """The vmlinux in the bzImage `name`, as it is now; for a kernel whose cache entry is gone."""
    with open_regular(name, "kernel") as fd:
        size = min(os.fstat(fd).st_size, _LARGEST)
        data = read_at(fd, 0, size, name)
    source = _unpack(name, data, _setup_header(name, data[:HEAD_SIZE], len(data))).source
    assert isinstance(source, BytesSource)
    return bytes(source.data)


def _unpack(name: str, data: bytes, header: SetupHeader) -> KernelImage:
    from aiovmm.boot import unpack

    offset, length = header.payload
    if offset + length > len(data):
        raise ImageError(name, f"truncated: its payload ends at byte {offset + length} of {len(data)}")
    payload = data[offset : offset + length]
    try:
        vmlinux = unpack.unpack(payload)
    except unpack.UnpackError as exc:
        raise ImageError(name, str(exc), "fetch or copy it again") from exc
    image = _parse_elf(name, FileWindow.over(vmlinux))
    compression = unpack.detect(payload) or ""
    return KernelImage(name, KernelKind.BZIMAGE, compression, header, image, BytesSource(vmlinux))


def _from_cache(name: str, cached: CachedKernel) -> KernelImage | None:
    """The cached kernel; None if its entry went away or does not parse, so that it is made again."""
    try:
        with open_regular(cached.source.path) as fd:
            image = parse(window(fd, cached.source.size, cached.source.path))
    except (ImageError, HostError, ElfError):
        return None
    header = SetupHeader(cached.header)
    source = replace(cached.source, remake=partial(_unpack_again, name))
    return KernelImage(name, KernelKind.BZIMAGE, cached.compression, header, image, source)


def _parse_elf(name: str, file: FileWindow) -> ElfImage:
    try:
        return parse(file)
    except ElfError as exc:
        raise ImageError(name, str(exc), _WANTED) from exc


def _no_room(segment: ElfSegment) -> str:
    return f"the kernel occupies {segment.address:#x} to {segment.end:#x}, which is not all in the guest's memory"


def _in_the_way(segment: ElfSegment) -> str:
    return f"the kernel occupies {segment.address:#x} to {segment.end:#x}, where its boot parameters and ACPI tables have to be"
