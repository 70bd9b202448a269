"""Frames, and that both sides have the same numbers."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aiovmm.agent
from aiovmm.agent import wire
from aiovmm.agent.channel import Channel
from aiovmm.agent.request import Request
from aiovmm.agent.wire import DATA_MAX, Frame, FrameBuffer, Kind, Stage, Stream, Whom, frame, read_greeting
from aiovmm.errors import PeerError

HEADER = (Path(aiovmm.agent.__file__).parent / "guest/wire.h").read_text()


def number(name: str) -> int:
    """Of wire.h."""
    found = re.search(rf"\b{name} = (\d+)( << (\d+))?", HEADER)
    assert found, name
    return int(found[1]) << int(found[3] or 0)


def test_both_sides_have_the_same_numbers() -> None:
    for kind in Kind:
        assert number("EOF_" if kind is Kind.EOF else kind.name) == kind
    for name in ("FRAME_MAX", "DATA_MAX", "CHANNELS_MAX"):
        assert number(name) == getattr(wire, name)
    assert number("WIRE_VERSION") == wire.VERSION
    assert f"#define AGENT_PORT {wire.AGENT_PORT}\n" in HEADER
    assert f'"{wire.MAGIC.decode()}"' in HEADER
    stages = re.search(r"enum \{ (STAGE_RESOURCES.*?) \}", HEADER)
    assert stages is not None
    assert stages[1].replace(" = 1", "").split(", ") == [f"STAGE_{stage.name}" for stage in Stage]
    assert list(Stage) == [*range(1, len(Stage) + 1)]
    assert "{ STDIN, STDOUT, STDERR }" in HEADER
    assert [*Stream] == [0, 1, 2]
    assert "{ WHOM_PROCESS, WHOM_GROUP, WHOM_SESSION }" in HEADER
    assert [*Whom] == [0, 1, 2]
    assert len(Request(args=["a"]).payload()) == number("START_HEADER") + 2 + 2


frames = st.lists(
    st.tuples(st.integers(0, 2**32 - 1), st.sampled_from(Kind), st.integers(0, 255), st.binary(max_size=300)),
    max_size=20,
)


@given(frames, st.lists(st.integers(1, 400), min_size=1))
def test_frames_come_out_however_they_are_cut(sent: list[tuple[int, Kind, int, bytes]], cuts: list[int]) -> None:
    data = b"".join(frame(channel, kind, payload, stream) for channel, kind, stream, payload in sent)
    buffer, found = FrameBuffer(), []
    turn = 0
    while data:
        size = min(cuts[turn % len(cuts)], len(data))
        buffer.room()[:size] = data[:size]
        found += buffer.filled(size)
        data = data[size:]
        turn += 1
    assert found == [Frame(*item) for item in sent]


def test_the_largest_frames_fill_the_buffer_for_ever() -> None:
    buffer = FrameBuffer()
    data = frame(1, Kind.DATA, bytes(DATA_MAX)) * 20
    found = []
    while data:
        size = min(len(buffer.room()), len(data))
        assert size
        buffer.room()[:size] = data[:size]
        found += buffer.filled(size)
        data = data[size:]
    assert [len(item.payload) for item in found] == [DATA_MAX] * 20


@given(st.binary(max_size=2000))
def test_anything_is_frames_or_an_error(data: bytes) -> None:
    buffer = FrameBuffer()
    buffer.room()[: len(data)] = data
    try:
        for found in buffer.filled(len(data)):
            read_greeting(found)
    except PeerError:
        pass


def test_a_frame_that_is_too_large_is_refused_before_it_comes() -> None:
    buffer = FrameBuffer()
    header = struct.pack("<IIBBH", DATA_MAX + 1, 0, Kind.DATA, 1, 0)
    buffer.room()[:12] = header
    with pytest.raises(PeerError):
        buffer.filled(12)


def test_another_version_is_named() -> None:
    payload = struct.pack("<8sHHIIIQII", wire.MAGIC, 2, 0, 1, 1, 1, 0, 0, 0)
    with pytest.raises(PeerError, match=r"version 2 of the protocol, not 1.*image initramfs --agent"):
        read_greeting(Frame(0, Kind.HELLO, 0, payload))


def test_the_end_of_input_is_said_once() -> None:
    """Behind all of it, and not again with each credit that still comes."""
    sent = list[bytes]()
    channel = Channel(5, sent.append, input_window=1000, window=1 << 17)
    channel.write(bytes(1500))
    channel.write_eof()
    for _ in range(3):
        channel.received(Frame(5, Kind.CREDIT, 0, struct.pack("<I", 500)))
    assert sent == [frame(5, Kind.DATA, bytes(1000)), frame(5, Kind.DATA, bytes(500)), frame(5, Kind.EOF)]
