"""A device tree as the blob that a kernel reads (Devicetree Specification 0.4, chapter 5, "Flattened Devicetree"). Pure.

header (40 bytes) | memory reservation block | structure block | strings block; all numbers big-endian
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from aiovmm.boot.fdt.node import Node

__all__ = ["flatten"]

_MAGIC = 0xD00DFEED
_VERSION, _LAST_COMPATIBLE = 17, 16
_BEGIN_NODE, _END_NODE, _PROPERTY, _END = (struct.pack(">I", token) for token in (1, 2, 3, 9))
_HEADER = struct.Struct(">10I")
_RESERVATION = struct.Struct(">QQ")


def flatten(root: Node, *, reserved: Sequence[tuple[int, int]] = (), boot_cpu: int = 0) -> bytes:
    """The blob of `root`. `reserved` are (address, size) that a kernel must leave alone; `boot_cpu` is the `reg` of the processor
    that reads it."""
    names = _Strings()
    structure = b"".join(_node(root, names)) + _END
    reservations = b"".join(_RESERVATION.pack(*pair) for pair in (*reserved, (0, 0)))
    structure_at = _HEADER.size + len(reservations)
    strings_at = structure_at + len(structure)
    total = strings_at + len(names.block)
    header = _HEADER.pack(
        _MAGIC,
        total,
        structure_at,
        strings_at,
        _HEADER.size,
        _VERSION,
        _LAST_COMPATIBLE,
        boot_cpu,
        len(names.block),
        len(structure),
    )
    return header + reservations + structure + bytes(names.block)


class _Strings:
    """The strings block: each name of a property once."""

    def __init__(self) -> None:
        self.block = bytearray()
        self._places: dict[str, int] = {}

    def place(self, name: str) -> int:
        if name not in self._places:
            self._places[name] = len(self.block)
            self.block += name.encode() + b"\0"
        return self._places[name]


def _node(node: Node, names: _Strings) -> Iterator[bytes]:
    yield _BEGIN_NODE + _padded(node.name.encode() + b"\0")
    for name, value in node.properties.items():
        yield _PROPERTY + struct.pack(">II", len(value), names.place(name)) + _padded(value)
    for child in node.children:
        yield from _node(child, names)
    yield _END_NODE


def _padded(data: bytes) -> bytes:
    """Tokens are aligned to 4 bytes."""
    return data + bytes(-len(data) % 4)
