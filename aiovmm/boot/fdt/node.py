"""Nodes of a device tree, and the encodings of what their properties hold (Devicetree Specification 0.4, 2.2). Pure."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping

from aiovmm.errors import UsageError
from aiovmm.runtime.dataclass import dataclass, field

__all__ = ["EMPTY", "Node", "cells", "quads", "raw_string", "strings"]

EMPTY = b""
"""The value of a property whose presence is all it says."""

# Table 2.1 and 2.4: names have 1 to 31 characters of these; a unit address is of the bus that the node is on, and as long as it
# needs to be.
_NODE_NAME = re.compile(r"[a-zA-Z][0-9a-zA-Z,._+-]{0,30}(@[0-9a-zA-Z,._+-]+)?")
_PROPERTY_NAME = re.compile(r"[0-9a-zA-Z,._+?#-]{1,31}")


@dataclass(frozen=True)
class Node:
    """`name` with its unit address ("" for the root), properties as encoded bytes in the order given, and nodes below.

    Raises UsageError for a name that the specification does not allow, and for two children of one name.
    """

    name: str
    properties: Mapping[str, bytes] = field(default_factory=dict)
    children: tuple[Node, ...] = ()

    def __post_init__(self) -> None:
        if self.name and not _NODE_NAME.fullmatch(self.name):
            raise UsageError(f"{self.name!r} is no name of a device tree's node")
        for name in self.properties:
            if not _PROPERTY_NAME.fullmatch(name):
                raise UsageError(f"{name!r} is no name of a device tree's property")
        names: set[str] = set()
        for child in self.children:
            if not child.name:
                raise UsageError("the root of a device tree is below no other node")
            if child.name in names:
                raise UsageError(f"{self.name or '/'!r} has two nodes {child.name!r}")
            names.add(child.name)


def cells(*values: int) -> bytes:
    """32-bit numbers, big-endian. Raises UsageError for one that does not fit."""
    return _numbers(">%dI", values)


def quads(*values: int) -> bytes:
    """64-bit numbers, big-endian: two cells each. Raises UsageError for one that does not fit."""
    return _numbers(">%dQ", values)


def _numbers(form: str, values: tuple[int, ...]) -> bytes:
    try:
        return struct.pack(form % len(values), *values)
    except struct.error as exc:
        raise UsageError(f"a device tree's numbers {values}: {exc}") from exc


def strings(*values: str) -> bytes:
    """A list of strings, each with its NUL. Raises UsageError for one that has a NUL within."""
    return b"".join(raw_string(value.encode()) for value in values)


def raw_string(value: bytes) -> bytes:
    """One string of bytes in whatever encoding, with its NUL. Raises UsageError if it has one within."""
    if b"\0" in value:
        raise UsageError("a string of a device tree contains a NUL byte, where its reader would stop")
    return value + b"\0"
