"""What an image may be at most. Whoever made it may be hostile: a few bytes of a layer can stand for terabytes, or for more files
than there is memory to name."""

from __future__ import annotations

from aiovmm.runtime.dataclass import dataclass

__all__ = ["DEEPEST", "Limits"]

DEEPEST = 256
"""Directories in directories; Linux's PATH_MAX allows for some 2,000, package managers make some 30."""


@dataclass(frozen=True)
class Limits:
    """`size`: bytes of all files together, unpacked. `entries`: files, directories and links, over all layers. `seconds`: of a
    processor, for making it; an image of 64 GiB takes some ten minutes."""

    size: int = 64 << 30
    entries: int = 2_000_000
    seconds: float = 3600.0

    @property
    def unpacked(self) -> int:
        """Bytes of all archives together: files that later layers replace, whiteouts, headers and padding are among them."""
        return 4 * self.size + 4096 * self.entries
