"""Device trees of any names and properties: refused, or a blob whose structure is whole; ACPI tables whose sum is right."""

from __future__ import annotations

import struct

from aiovmm.boot.acpi.sdt import checksum, sdt
from aiovmm.boot.fdt import Node, flatten
from aiovmm.boot.fdt.node import cells, quads, raw_string, strings
from aiovmm.errors import UsageError
from tests.fuzz.source import Source, refused

SEEDS = [b"\2\4cpus\1\3reg\4\0\0\0\1\0", b"\1\5a@100\2\6status\5okay\0"]
_BEGIN, _END, _PROP, _NOP, _FINISH = 1, 2, 3, 4, 9


def _node(source: Source, depth: int = 0) -> Node:
    name = "" if depth == 0 else source.some(12).decode("latin1")
    properties = {source.some(12).decode("latin1"): source.some(20) for _ in range(source.below(3))}
    children = tuple(_node(source, depth + 1) for _ in range(source.below(3) if depth < 4 and source else 0))
    return Node(name, properties, children)


def _check(blob: bytes) -> None:
    magic, size, structure, names, _, _, _, _, names_size, structure_size = struct.unpack_from(">10I", blob)
    assert (magic, size) == (0xD00DFEED, len(blob))
    at, depth = structure, 0
    while True:
        (token,) = struct.unpack_from(">I", blob, at)
        at += 4
        if token == _BEGIN:
            at, depth = (blob.index(b"\0", at) + 4) // 4 * 4, depth + 1
        elif token == _PROP:
            length, name = struct.unpack_from(">II", blob, at)
            assert blob.index(b"\0", names + name) < names + names_size
            at += 8 + (length + 3) // 4 * 4
        elif token == _END:
            depth -= 1
        else:
            assert token == _FINISH
            break
    assert depth == 0
    assert at == structure + structure_size


def run(data: bytes) -> None:
    source = Source(data)
    with refused(UsageError):
        _check(flatten(_node(source)))
    with refused(UsageError):
        cells(source.number(5))
    with refused(UsageError):
        quads(source.number(9))
    with refused(UsageError):
        raw_string(source.some(8))
    with refused(UsageError):
        strings(source.some(8).decode("latin1"))
    assert checksum(sdt("TEST", 1, source.rest())) == 0
