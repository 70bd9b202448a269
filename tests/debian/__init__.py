"""Debian's archive from any Debian: packages of another release than the machine's, unpacked beside it, and whole roots."""

from __future__ import annotations

from .archive import Archive, ArchiveError
from .sources import NoSources, apt_settings, sources
from .unpacked import Unpacked

__all__ = ["Archive", "ArchiveError", "NoSources", "Unpacked", "apt_settings", "sources"]
