"""What a caller gives, looked at before anything is begun: what is found unfit half-way has left something behind, and its error
names nothing that the caller knows. Each raises UsageError, which names the argument."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from aiovmm.errors import UsageError

__all__ = ["a_list", "a_mapping", "a_path", "bytes_like", "whole"]


def whole(value: object, what: str, least: int = 0, most: int | None = None) -> int:
    """A whole number from `least` to `most`, both included; True is none."""
    if isinstance(value, int) and not isinstance(value, bool) and least <= value and (most is None or value <= most):
        return value
    bounds = f"from {least} on" if most is None else f"from {least} to {most}"
    raise UsageError(f"{what}={value!r} is not a whole number {bounds}")


def a_path(value: object, what: str) -> str:
    """Text, bytes or a path object, as text. One that is empty is a variable that nobody has set: it is not the directory
    that this process happens to be in."""
    if isinstance(value, str | bytes | os.PathLike):
        path = os.fsdecode(value)
        if path and "\0" not in path:
            return path
    raise UsageError(f"{what}={value!r} is no path")


def a_mapping(value: object, what: str, like: str) -> Mapping[Any, Any]:
    """`like` shows one."""
    if isinstance(value, Mapping):
        return value
    raise UsageError(f"{what}={value!r} is no mapping: like {like}")


def a_list(value: object, what: str, like: str) -> Sequence[Any]:
    """A list or the like, and not one text. `like` shows one."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview):
        return value
    raise UsageError(f"{what}={value!r} is no list: like {like}")


def bytes_like(value: object, what: str) -> bytes | bytearray:
    """Bytes; a view of something is copied, for its length may be counted in other things."""
    if isinstance(value, bytes | bytearray):
        return value
    if isinstance(value, memoryview):
        return bytes(value)
    raise UsageError(f"{what} is of type {type(value).__name__}: give bytes, text as text.encode()")
