"""The image in an OCI layout: blobs by digest, every byte of which is checked as it is read.

Source: OCI image specification 1.1, image-layout.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

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
from aiovmm.rootfs.layout import LARGEST_DOCUMENT, Files, read_document
from aiovmm.rootfs.streams import EXPANDING_ERRORS, Hashed, expanded
from aiovmm.rootfs.tar import TarError, TarReader
from aiovmm.rootfs.tree import Tree

__all__ = ["OciImage", "check_configuration"]

_INDEXES = 8  # in each other
T = TypeVar("T")


class OciImage:
    """Its documents are read; `digest` is its manifest's, which stands for all that is in it."""

    def __init__(self, path: Path, files: Files, architecture: str, tag: str | None) -> None:
        self._path = path
        self._files = files
        manifest = self._manifest(architecture, tag)
        self.digest = manifest.digest
        config, self.layers = self._parsed("the manifest", parse_manifest, self._document(manifest))
        self.configuration: Configuration = self._parsed(
            "the configuration", parse_configuration, self._document(config)
        )
        check_configuration(path, self.configuration, architecture, len(self.layers))

    def apply(self, tree: Tree, blocks: Blocks, left_out: LeftOut) -> None:
        """All layers onto `tree`. Raises ImageError, TarError, TreeError, TooLarge."""
        for layer, diff_id in zip(self.layers, self.configuration.diff_ids, strict=True):
            with self._blob(layer) as stored:
                algorithm, _, wanted = diff_id.partition(":")
                unpacked = Hashed(expanded(stored, blocks.unpacked.take), algorithm)
                apply_archive(tree, blocks, TarReader(unpacked.read), left_out, is_layer=True)
                if unpacked.finish() != wanted:
                    raise TarError("it is not what the configuration says of it")

    def _manifest(self, architecture: str, tag: str | None) -> Descriptor:
        try:
            data = read_document(self._path, self._files, "index.json")
        except FileNotFoundError as exc:
            reason = "is no OCI layout, nor what `docker save` writes: it has no index.json, and no manifest.json"
            raise ImageError(str(self._path), reason) from exc
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
        if descriptor.size > LARGEST_DOCUMENT:
            raise ImageError(str(self._path), f"has a document of {descriptor.size} bytes")
        with self._blob(descriptor) as stored:
            data = b""
            while part := stored.read(1 << 16):
                data += part
            return data

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


def check_configuration(path: Path, said: Configuration, architecture: str, layers: int) -> None:
    """Raises ImageError if it is not that of an image for `architecture` with so many layers."""
    if said.architecture not in ("", architecture):
        raise ImageError(str(path), f"is for {said.architecture}, and not for {architecture}")
    if len(said.diff_ids) != layers:
        raise ImageError(str(path), f"has {layers} layers, and its configuration tells of {len(said.diff_ids)}")
