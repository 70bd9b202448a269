"""What is kept for later has an end: the newest stay."""

from __future__ import annotations

import stat
from contextlib import suppress
from pathlib import Path

__all__ = ["keep_newest"]


def keep_newest(folder: Path, most: int) -> None:
    """Of the files in `folder`, the hidden ones apart, which are not whole yet: all of one name together, whatever they end with,
    the oldest go but for `most`. What cannot be looked at or removed stays, or has been removed by another. Blocking."""
    kept: dict[str, list[tuple[int, Path]]] = {}
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):
                status = path.lstat()
                if not path.name.startswith(".") and stat.S_ISREG(status.st_mode):
                    kept.setdefault(path.name.partition(".")[0], []).append((status.st_mtime_ns, path))
    for files in sorted(kept.values(), key=max)[:-most]:
        for _, path in files:
            with suppress(OSError):
                path.unlink()
