"""What layout an image has that comes as a directory or in one archive: OCI's, or that of `docker save`."""

from __future__ import annotations

from pathlib import Path

from aiovmm.errors import ImageError
from aiovmm.rootfs.layout import Files, FilesOfArchive, FilesOfDirectory
from aiovmm.rootfs.oci import OciImage
from aiovmm.rootfs.saved import MANIFEST, SavedImage
from aiovmm.rootfs.tar import TarError

__all__ = ["open_layout"]


def open_layout(path: Path, architecture: str, tag: str | None, place: Path | None = None) -> OciImage | SavedImage:
    """The image at `path` for `architecture` (Go's name), named `tag` if there are several. OCI's layout goes before the other,
    of which newer Dockers write both. `place`: where its archive was unpacked to, if it had to be. Raises ImageError."""
    place = place or path
    try:
        files: Files = FilesOfDirectory(place) if place.is_dir() else FilesOfArchive(place)
        kind = OciImage if files.has("index.json") or not files.has(MANIFEST) else SavedImage
        return kind(path, files, architecture, tag)
    except TarError as exc:
        raise ImageError(str(path), str(exc), "an image's layout is a directory or a tar archive") from exc
    except OSError as exc:
        raise ImageError(str(path), f"cannot be read: {exc.strerror}") from exc
