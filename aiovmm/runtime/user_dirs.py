"""Where this user's files go (XDG Base Directory Specification 0.8)."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from aiovmm.errors import UsageError

__all__ = ["cache_directory", "find_cache_directory", "runtime_directory"]


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


def runtime_directory(*, make: bool = True) -> Path:
    """Where sockets and the like of running programs go: `$XDG_RUNTIME_DIR/aiovmm`, else /run/aiovmm for root and
    /tmp/aiovmm-UID for others. It is made, unless one is only to look there, and is this user's alone. Raises UsageError where
    it is somebody else's, OSError."""
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if base.startswith("/"):
        path = Path(base) / "aiovmm"
    else:
        path = Path(f"/tmp/aiovmm-{os.getuid()}") if os.getuid() else Path("/run/aiovmm")
    if make:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    elif not path.exists() and not path.is_symlink():
        return path
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise UsageError(f"{path} is not a directory of this user alone: remove it, or set XDG_RUNTIME_DIR")
    return path


def _home() -> str:
    home = os.environ.get("HOME", "")
    if home.startswith("/"):
        return home
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return ""
