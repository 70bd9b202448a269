"""A file system that is soon full."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["tmpfs"]


@contextmanager
def tmpfs(place: Path, size: str) -> Iterator[Path]:
    """One of `size` ("64k") at `place`, which is made. Skips where none may be mounted."""
    place.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError) as exc:
        pytest.skip(f"no tmpfs: {exc}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
