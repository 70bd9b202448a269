"""Seals on memory that other processes are given (fcntl(2), "File sealing")."""

from __future__ import annotations

import fcntl

__all__ = ["seal_size"]


def seal_size(fd: int) -> None:
    """Nobody makes this memfd shorter or longer, or takes that back. Raises OSError."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
