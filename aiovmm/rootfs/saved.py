"""An image as `docker save`, `podman save` and skopeo's docker-archive write it: a manifest of files in the same archive. Its
configuration has the digest of each layer, unpacked, and every byte is checked against that.

Source: the image specification of Docker, v1.2.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from aiovmm.errors import ImageError
from aiovmm.rootfs.blocks import Blocks
from aiovmm.rootfs.documents import DocumentError, parse_configuration, select_saved
from aiovmm.rootfs.layer import LeftOut, apply_archive
from aiovmm.rootfs.layout import Files, read_document
from aiovmm.rootfs.oci import check_configuration
from aiovmm.rootfs.streams import EXPANDING_ERRORS, Hashed, expanded
from aiovmm.rootfs.tar import TarError, TarReader
from aiovmm.rootfs.tree import Tree

__all__ = ["MANIFEST", "SavedImage"]

MANIFEST = "manifest.json"


class SavedImage:
    """Its documents are read; `digest` is its configuration's, which stands for all that is in it."""

    def __init__(self, path: Path, files: Files, architecture: str, tag: str | None) -> None:
        self._path = path
        self._files = files
        try:
            config, self._layers = select_saved(read_document(path, files, MANIFEST), tag)
            data = read_document(path, files, config)
            self.configuration = parse_configuration(data)
        except DocumentError as exc:
            raise ImageError(str(path), f"the image that was saved {exc}") from exc
        check_configuration(path, self.configuration, architecture, len(self._layers))
        self.digest = f"sha256:{hashlib.sha256(data).hexdigest()}"

    def apply(self, tree: Tree, blocks: Blocks, left_out: LeftOut) -> None:
        """All layers onto `tree`. Raises ImageError, TarError, TreeError, TooLarge."""
        for name, diff_id in zip(self._layers, self.configuration.diff_ids, strict=True):
            try:
                file, size = self._files.open(name)
            except FileNotFoundError as exc:
                raise ImageError(str(self._path), f"lacks the layer {name}", "save the image again") from exc
            algorithm, _, wanted = diff_id.partition(":")
            with file:
                try:
                    unpacked = Hashed(expanded(Hashed(file, most=size), blocks.unpacked.take), algorithm)
                    apply_archive(tree, blocks, TarReader(unpacked.read), left_out, is_layer=True)
                    found = unpacked.finish()
                except (*EXPANDING_ERRORS, TarError) as exc:
                    raise ImageError(str(self._path), f"the layer {name} cannot be unpacked: {exc}") from exc
            if found != wanted:
                reason = f"the layer {name} is not what the configuration says of it"
                raise ImageError(str(self._path), reason, "save the image again")
