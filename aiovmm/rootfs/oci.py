"""An OCI image layout, as a directory or in one tar archive: blobs by digest, every byte of which is checked as it is read.

Source: OCI image specification 1.1, image-layout.md.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from aiovmm.errors import ImageError
from aiovmm.rootfs.blocks import Blocks
from aiovmm.rootfs.documents import (
    Configuration,
    Descriptor,
    DocumentError,
    parse_configuration,
    parse_manifest,
    select_manifest,
)
from aiovmm.rootfs.layer import LeftOut, apply_archive
from aiovmm.rootfs.streams import EXPANDING_ERRORS, Hashed, expanded
from aiovmm.rootfs.tar import TarError, TarReader
from aiovmm.rootfs.tree import Tree

__all__ = ["OciImage", "open_oci"]

_LARGEST_DOCUMENT = 4 << 20  # bytes, as registries have it
_INDEXES = 8  # in each other
T = TypeVar("T")


class _Files(Protocol):
    """Files of a layout by name; `open` gives the file, at its start, and its size."""

    def open(self, name: str) -> tuple[BinaryIO, int]: ...


class _Directory:
    def __init__(self, root: Path) -> None:
        self._root = root

    def open(self, name: str) -> tuple[BinaryIO, int]:
        """A regular file, be it through a link, but no FIFO, which would not answer."""
        fd = os.open(self._root / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise ImageError(str(self._root / name), "is not a file")
        return open(fd, "rb", buffering=0), status.st_size


class _Archive:
    """Found once, by the archive's own headers; a blob is then read where it lies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, tuple[int, int]] = {}
        with open(path, "rb") as file:
            reader = _Seeking(file)
            for member in reader.tar:
                if member.kind == "file":
                    name = os.fsdecode(member.path).removeprefix("./")
                    self._places[name] = (reader.tar.offset, member.size)
                    reader.skip()

    def open(self, name: str) -> tuple[BinaryIO, int]:
        if name not in self._places:
            raise FileNotFoundError(2, os.strerror(2), name)
        offset, size = self._places[name]
        file = open(self._path, "rb", buffering=0)  # noqa: SIM115 - the caller closes it
        file.seek(offset)
        return file, size


class _Seeking:
    """A tar reader that passes over content without reading it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.tar = TarReader(file.read)

    def skip(self) -> None:
        self._file.seek(self.tar.pass_over(), os.SEEK_CUR)


def open_oci(path: Path, architecture: str, tag: str | None) -> OciImage:
    """The image in the layout at `path` for `architecture` (Go's name), named `tag` if there are several. Raises ImageError."""
    try:
        files: _Files = _Directory(path) if path.is_dir() else _Archive(path)
        return OciImage(path, files, architecture, tag)
    except TarError as exc:
        hint = "an OCI layout is a directory or a tar archive that is not compressed"
        raise ImageError(str(path), str(exc), hint) from exc
    except OSError as exc:
        raise ImageError(str(path), f"cannot be read: {exc.strerror}") from exc


class OciImage:
    """Its documents are read; `digest` is its manifest's, which stands for all that is in it."""

    def __init__(self, path: Path, files: _Files, architecture: str, tag: str | None) -> None:
        self._path = path
        self._files = files
        manifest = self._manifest(architecture, tag)
        self.digest = manifest.digest
        config, self.layers = self._parsed("the manifest", parse_manifest, self._document(manifest))
        self.configuration: Configuration = self._parsed(
            "the configuration", parse_configuration, self._document(config)
        )
        if self.configuration.architecture not in ("", architecture):
            raise ImageError(str(path), f"is for {self.configuration.architecture}, and not for {architecture}")
        if len(self.configuration.diff_ids) != len(self.layers):
            told = len(self.configuration.diff_ids)
            raise ImageError(str(path), f"has {len(self.layers)} layers, and its configuration tells of {told}")

    def apply(self, tree: Tree, blocks: Blocks, left_out: LeftOut) -> None:
        """All layers onto `tree`. Raises ImageError, TarError, TreeError, TooLarge."""
        for layer, diff_id in zip(self.layers, self.configuration.diff_ids, strict=True):
            with self._blob(layer) as stored:
                algorithm, _, wanted = diff_id.partition(":")
                unpacked = Hashed(expanded(stored), algorithm)
                apply_archive(tree, blocks, TarReader(unpacked.read), left_out, is_layer=True)
                if unpacked.finish() != wanted:
                    raise TarError("it is not what the configuration says of it")

    def _manifest(self, architecture: str, tag: str | None) -> Descriptor:
        try:
            data = self._read("index.json", _LARGEST_DOCUMENT)
        except FileNotFoundError as exc:
            hint = "`skopeo copy docker-archive:FILE oci:DIR` makes one of what `docker save` writes"
            raise ImageError(str(self._path), "is no OCI layout: it has no index.json", hint) from exc
        found = self._select(data, architecture, tag)
        for _ in range(_INDEXES):
            if not found.is_index:
                return found
            found = self._select(self._document(found), architecture, None)
        raise ImageError(str(self._path), f"has more than {_INDEXES} indexes in each other")

    def _select(self, data: bytes, architecture: str, tag: str | None) -> Descriptor:
        return self._parsed("the index", lambda text: select_manifest(text, architecture, tag), data)

    def _parsed(self, what: str, parse: Callable[[bytes], T], data: bytes) -> T:
        try:
            return parse(data)
        except DocumentError as exc:
            raise ImageError(str(self._path), f"{what} {exc}") from exc

    def _document(self, descriptor: Descriptor) -> bytes:
        if descriptor.size > _LARGEST_DOCUMENT:
            raise ImageError(str(self._path), f"has a document of {descriptor.size} bytes")
        with self._blob(descriptor) as stored:
            data = b""
            while part := stored.read(1 << 16):
                data += part
            return data

    def _read(self, name: str, most: int) -> bytes:
        file, size = self._files.open(name)
        with file:
            if size > most:
                raise ImageError(str(self._path), f"{name} has {size} bytes")
            return _whole(file, size)

    @contextmanager
    def _blob(self, descriptor: Descriptor) -> Iterator[Hashed]:
        """Raises ImageError at the end if it was not what its digest says."""
        algorithm, _, wanted = descriptor.digest.partition(":")
        try:
            file, size = self._files.open(f"blobs/{algorithm}/{wanted}")
        except FileNotFoundError as exc:
            raise ImageError(str(self._path), f"lacks the blob {descriptor.digest}", "copy the image again") from exc
        with file:
            if size != descriptor.size:
                reason = f"has {size} bytes of the blob {descriptor.digest}, and not {descriptor.size}"
                raise ImageError(str(self._path), reason, "copy the image again")
            stored = Hashed(file, algorithm, size)
            try:
                yield stored
            except (*EXPANDING_ERRORS, TarError) as exc:
                self._check(stored, descriptor, exc)
                raise ImageError(str(self._path), f"the layer {descriptor.digest} cannot be unpacked: {exc}") from exc
            self._check(stored, descriptor, None)

    def _check(self, stored: Hashed, descriptor: Descriptor, cause: BaseException | None) -> None:
        if stored.finish() != descriptor.digest.partition(":")[2]:
            reason = f"has a blob that is not what its digest {descriptor.digest} says"
            raise ImageError(str(self._path), reason, "copy the image again") from cause


def _whole(file: BinaryIO, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := file.read(size - len(data))):
        data += more
    return data
