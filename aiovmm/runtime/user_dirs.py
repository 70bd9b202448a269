"""Where this user's files go (XDG Base Directory Specification 0.8)."""

from __future__ import annotations

import os
from pathlib import Path

from aiovmm.errors import UsageError

__all__ = ["cache_directory", "find_cache_directory"]


def find_cache_directory() -> Path | None:
    """`$XDG_CACHE_HOME/aiovmm`, by default under ~/.cache; None for a user without a home, neither HOME nor in the user database.

    Relative paths count as unset, as the specification has it.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if base.startswith("/"):
        return Path(base) / "aiovmm"
    home = _home()
    return Path(home) / ".cache" / "aiovmm" if home.startswith("/") else None


def cache_directory() -> Path:
    """The same for what cannot be done without. Raises UsageError."""
    found = find_cache_directory()
    if found is None:
        raise UsageError("there is nowhere to keep files: this user has no home directory (set HOME or XDG_CACHE_HOME)")
    return found


def _home() -> str:
    home = os.environ.get("HOME", "")
    if home.startswith("/"):
        return home
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return ""
