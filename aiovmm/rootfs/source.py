"""What an image is made of, what that is called in the cache, and how it is read. Plain values, for another process too."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

from aiovmm.errors import ImageError
from aiovmm.rootfs.blocks import Blocks
from aiovmm.rootfs.directory import add_directory, fingerprint
from aiovmm.rootfs.documents import Configuration
from aiovmm.rootfs.layer import LeftOut, apply_archive
from aiovmm.rootfs.layouts import open_layout
from aiovmm.rootfs.packed import is_packed_file, unpacked
from aiovmm.rootfs.streams import EXPANDING_ERRORS, expanded
from aiovmm.rootfs.tar import TarError, TarReader
from aiovmm.rootfs.tree import Tree

__all__ = ["Identity", "Source"]

_FORMAT = 3
"""Of the images that are made: with another number, all are made anew."""

_SETTLED = 2_000_000_000  # nanoseconds after which a file that is written again has another time for sure


@dataclass(frozen=True)
class Identity:
    """`key` names what is there now; if it is not `settled`, what is there later may have the same key."""

    key: str
    settled: bool


@dataclass(frozen=True)
class Source:
    """`kind` is directory, tar or oci; `architecture` is Go's name of the guest's; `tag` chooses one of several images."""

    kind: str
    path: str
    architecture: str
    tag: str | None = None

    def identity(self, entries: int) -> Identity:
        """Blocking. Raises ImageError, also for a directory of more than so many."""
        if self.kind == "oci" and not self._is_packed():
            return Identity(self.key(open_layout(Path(self.path), self.architecture, self.tag).digest), True)
        if self.kind in ("tar", "oci"):
            status = self._status()
            text: tuple[object, ...] = (status.st_dev, status.st_ino, status.st_size)
            text += (status.st_mtime_ns, status.st_ctime_ns)
            text += (self.tag,) if self.kind == "oci" else ()
            return Identity(self.key(repr(text)), time.time_ns() - status.st_ctime_ns > _SETTLED)
        text_of, settled = fingerprint(Path(self.path), entries)
        return Identity(self.key(text_of), settled)

    def fill(self, tree: Tree, blocks: Blocks, left_out: LeftOut, folder: Path, most: int) -> Configuration:
        """Blocking. All there is onto `tree`. An archive that has to be unpacked, of an image of `most` bytes, is in `folder`
        meanwhile. Raises ImageError, TreeError, TarError, TooLarge, OSError."""
        if self.kind == "oci":
            return self._fill_from_layout(tree, blocks, left_out, folder, most)
        if self.kind == "tar":
            self._fill_from_tar(tree, blocks, left_out)
        else:
            add_directory(tree, blocks, Path(self.path), left_out)
        return Configuration()

    def to_json(self) -> str:
        """For another process; `Source(**json.loads(text))`."""
        return json.dumps(asdict(self))

    def _is_packed(self) -> bool:
        """Whether it is an archive that is compressed as a whole: nothing of it is read then but to make the image."""
        path = Path(self.path)
        try:
            return not path.is_dir() and is_packed_file(path)
        except OSError as exc:
            raise ImageError(self.path, f"cannot be read: {exc.strerror}") from exc

    def _fill_from_layout(
        self, tree: Tree, blocks: Blocks, left_out: LeftOut, folder: Path, most: int
    ) -> Configuration:
        path = Path(self.path)
        with nullcontext(path) if path.is_dir() else unpacked(path, folder, most) as place:
            image = open_layout(path, self.architecture, self.tag, place)
            image.apply(tree, blocks, left_out)
        if workdir := image.configuration.workdir:  # builders leave it to whoever runs the image to make it
            tree.ensure_directory(os.fsencode(os.path.normpath(f"/{workdir}")))
        return image.configuration

    def _fill_from_tar(self, tree: Tree, blocks: Blocks, left_out: LeftOut) -> None:
        self._status()
        with open(self.path, "rb") as file:
            try:
                reader = TarReader(expanded(file, blocks.unpacked.take).read)
                apply_archive(tree, blocks, reader, left_out, is_layer=False)
            except EXPANDING_ERRORS as exc:
                raise TarError(f"cannot be unpacked: {exc}") from exc
        if not reader.ended:
            raise TarError(f"is cut short, at byte {reader.offset}")

    def _status(self) -> os.stat_result:
        try:
            status = os.stat(self.path)
        except OSError as exc:
            raise ImageError(self.path, f"cannot be read: {exc.strerror}") from exc
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(self.path, "is no file", "a directory is for Image.from_directory, or from_oci")
        return status

    def key(self, identity: str) -> str:
        """The name in the cache of what `identity` tells from all else of its kind."""
        return hashlib.sha256(json.dumps([_FORMAT, self.kind, self.architecture, identity]).encode()).hexdigest()
