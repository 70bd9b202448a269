"""What is kept for later has an end: the newest stay."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["keep_newest"]


def keep_newest(folder: Path, most: int) -> None:
    """Of the files in `folder`, the hidden ones apart, which are not whole yet: all of one name together, whatever they end with,
    the oldest go but for `most`. Blocking. Raises OSError."""
    kept: dict[str, list[tuple[int, str]]] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.is_file(follow_symlinks=False):
                written = entry.stat(follow_symlinks=False).st_mtime_ns
                kept.setdefault(entry.name.partition(".")[0], []).append((written, entry.path))
    for files in sorted(kept.values(), key=max)[:-most]:
        for _, path in files:
            Path(path).unlink(missing_ok=True)
