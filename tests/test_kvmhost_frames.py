"""The command channel's framing: any bytes, cut anywhere, survive; damage costs the damaged frame alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kvmhost.frames import MAX_BODY, Decoder, Frame, Kind, encode, split
from tests.kvmhost.messages import Hello, Request, Result, pack, unpack

FRAMES = st.builds(Frame, st.sampled_from(Kind), st.binary(max_size=200) | st.just(b"\x7e\x7d\x5e\x5d" * 5))


@given(st.lists(FRAMES, max_size=8), st.lists(st.integers(1, 50), max_size=40))
def test_frames_survive_any_cutting(frames: list[Frame], cuts: list[int]) -> None:
    stream = b"".join(encode(frame) for frame in frames)
    decoder = Decoder()
    received: list[Frame] = []
    for cut in cuts:
        received += decoder.feed(stream[:cut])
        stream = stream[cut:]
    received += decoder.feed(stream)
    assert received == frames
    assert decoder.damaged == 0


@given(FRAMES, FRAMES, st.data())
def test_a_sender_that_vanishes_in_a_frame_costs_that_frame_alone(
    lost: Frame, next_one: Frame, data: st.DataObject
) -> None:
    start = encode(lost)
    decoder = Decoder()
    cut = data.draw(st.integers(0, len(start) - 1))
    assert decoder.feed(start[:cut]) == []
    complete = [lost] if cut == len(start) - 1 else []  # all but the closing flag, which the next frame's flag is
    assert decoder.feed(encode(next_one)) == [*complete, next_one]


@given(FRAMES, st.data())
def test_a_changed_byte_never_passes_for_another_frame(frame: Frame, data: st.DataObject) -> None:
    wire = bytearray(encode(frame))
    at = data.draw(st.integers(0, len(wire) - 1))
    wire[at] ^= data.draw(st.integers(1, 255))
    assert all(received == frame for received in Decoder().feed(bytes(wire) + b"\x7e"))


def test_endless_noise_keeps_memory_bounded_and_the_next_frame_arrives() -> None:
    decoder = Decoder()
    for _ in range(64):
        assert decoder.feed(b"x" * MAX_BODY) == []
    assert len(decoder._pending) <= 2 * MAX_BODY + 16
    assert decoder.feed(encode(Frame(Kind.STDOUT, b"ok"))) == [Frame(Kind.STDOUT, b"ok")]
    assert decoder.damaged == 1


def test_an_unknown_kind_is_dropped() -> None:
    known = encode(Frame(Kind.ALIVE))
    decoder = Decoder()
    bad = bytearray(known)
    bad[1] = 200
    assert decoder.feed(bytes(bad) + known) == [Frame(Kind.ALIVE)]


def test_bodies_end_at_the_limit_and_longer_data_is_split() -> None:
    with pytest.raises(ValueError, match="262144 bytes at most"):
        encode(Frame(Kind.STDIN, bytes(MAX_BODY + 1)))
    pieces = split(Kind.STDIN, bytes(2 * MAX_BODY + 1))
    assert [len(piece.body) for piece in pieces] == [MAX_BODY, MAX_BODY, 1]
    assert split(Kind.STDIN, b"") == []


@pytest.mark.parametrize(
    "message",
    [
        Hello("n", "boot", "digest", 1.5),
        Request(["echo", "ü \n"], "/", {"A": "b"}, True, [24, 80], 2.5, True),
        Result(-9, 0.25, True, 3),
    ],
)
def test_messages_survive(message: Hello | Request | Result) -> None:
    assert unpack(type(message), pack(message)) == message


@pytest.mark.parametrize("body", [b"", b"[]", b'{"status": 1}', b'{"other": 1}', b"\xff"])
def test_what_is_not_a_message_is_said_so(body: bytes) -> None:
    with pytest.raises(ValueError):
        unpack(Result, body)
