"""What an agent in a hostile guest says: frames, its greeting, trees of files; however it is cut."""

from __future__ import annotations

import struct

from aiovmm.agent.tree import DEPTH_MAX, Directory, Link, TreeReader, Up, stays_inside
from aiovmm.agent.wire import Frame, FrameBuffer, greeting, number_of, numbers_of, read_greeting
from aiovmm.errors import PeerError
from tests.fuzz.source import Source, refused


def _record(kind: bytes, name: bytes = b"") -> bytes:
    return struct.pack("<BBHIq", kind[0], 0, len(name), 0o644, 0) + name


_TREE = (
    _record(b"D", b"") + _record(b"F", b"a") + struct.pack("<I", 3) + b"abc" + bytes(8) + _record(b"U") + _record(b"E")
)
SEEDS = [
    b"\0\xff" + greeting() * 3,
    b"\1\xff" + _TREE,
    b"\1\3" + _record(b"D") + _record(b"L", b"l") + b"\3\0../" + _record(b"X", b"x") + _record(b"U") + _record(b"E"),
]


def _frames(source: Source) -> list[Frame]:
    buffer, found = FrameBuffer(), []
    while source:
        piece = source.take(1 + source.below(256))
        buffer.room()[: len(piece)] = piece
        found += buffer.filled(len(piece))
        assert len(buffer.room()) > 0
    return found


def _tree(source: Source) -> None:
    reader, depth = TreeReader(), 0
    while source:
        for record in reader.feed(source.take(1 + source.below(256))):
            depth += isinstance(record, Directory) - isinstance(record, Up)
            assert 0 <= depth <= DEPTH_MAX + 1
            if isinstance(record, Link):
                stays_inside(record.target, depth)


def run(data: bytes) -> None:
    source = Source(data)
    with refused(PeerError):
        if source.number() % 2:
            _tree(source)
            return
        for frame in _frames(source):
            for reads in (read_greeting, number_of, numbers_of):
                with refused(PeerError):
                    reads(frame)
