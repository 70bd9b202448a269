"""Checks that refuse a configuration by the name of the option at fault."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol

from aiovmm.errors import ConfigError

__all__ = ["U16", "U32", "U64", "require", "require_apart", "require_window"]

U16, U32, U64 = 1 << 16, 1 << 32, 1 << 64


class Range(Protocol):
    """`size` addresses from `base`, the first after them being `end`."""

    @property
    def base(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def end(self) -> int: ...


def require(condition: bool, option: str, reason: str) -> None:
    """Raise ConfigError unless `condition` holds."""
    if not condition:
        raise ConfigError(option, reason)


def require_apart(option: str, windows: Sequence[Range]) -> None:
    """No two of `windows` overlap."""
    for a, b in itertools.pairwise(sorted(windows, key=lambda w: w.base)):
        require(a.end <= b.base, option, f"[{a.base:#x}, {a.end:#x}) and [{b.base:#x}, {b.end:#x}) overlap")


def require_window(option: str, window: Range, limit: int) -> None:
    """The window is not empty and lies in 0..limit."""
    fits = window.base >= 0 and window.size > 0 and window.end <= limit
    require(fits, option, f"[{window.base:#x}, {window.end:#x}) is empty or not below {limit:#x}")
