"""Files that appear whole, or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["appearing"]


@contextmanager
def appearing(path: Path, *, replacing: bool = False) -> Iterator[int]:
    """A new file that gets its name when the block ends well, and is on the medium then: in the place of no other file, or of any
    that is there. Until then it has none where the file system has such files: whoever is killed meanwhile leaves nothing of it.
    Raises OSError."""
    fd, temporary = _begun(path)
    try:
        yield fd
        os.fsync(fd)
        if temporary is None:
            temporary = _beside(path) if replacing else None
            os.link(f"/proc/self/fd/{fd}", temporary or path, src_dir_fd=fd)  # linkat(2), which can follow that link
        elif not replacing:
            os.link(temporary, path)
        if replacing and temporary is not None:
            os.replace(temporary, path)
    finally:
        os.close(fd)
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)


def _begun(path: Path) -> tuple[int, Path | None]:
    """And its name, if it has one."""
    with suppress(
        OSError
    ):  # file systems refuse it each in its own way; what is wrong with the directory says the other
        fd = os.open(path.parent, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o666)
        if os.path.exists(f"/proc/self/fd/{fd}"):
            return fd, None
        os.close(fd)
    temporary = _beside(path)
    return os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), temporary


def _beside(path: Path) -> Path:
    return path.with_name(f".aiovmm-{uuid.uuid4().hex[:12]}")
