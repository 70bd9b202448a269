"""virtio-rtc as Linux's driver asks it (drivers/virtio/virtio_rtc_driver.c), and as nobody should."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiovmm.devices.virtio.rtc import RtcDevice
from aiovmm.devices.virtio.rtc.protocol import Request, Status, answer
from aiovmm.testing import Harness

NOW = 1_705_315_845_123_456_789


def head(kind: int) -> bytes:
    return struct.pack("<H6x", kind)


def of_clock(kind: int, clock: int = 0) -> bytes:
    return head(kind) + struct.pack("<H6x", clock)


async def test_a_driver_finds_one_clock_and_reads_it() -> None:
    async with Harness(RtcDevice(lambda: NOW)) as h:
        config = await h.request(0, [head(Request.CONFIG)], [16])
        assert struct.unpack("<B7xH6x", config) == (Status.OK, 1)
        kind = await h.request(0, [of_clock(Request.CLOCK_CAPABILITIES)], [16])
        assert struct.unpack("<B7xBBB5x", kind) == (Status.OK, 4, 0, 0)
        cross = await h.request(0, [of_clock(Request.CROSS_CAPABILITIES)], [16])
        assert cross == bytes(16)
        reading = await h.request(0, [of_clock(Request.READ)], [16])
        assert struct.unpack("<B7xQ", reading) == (Status.OK, NOW)


async def test_a_request_may_lie_in_pieces() -> None:
    async with Harness(RtcDevice(lambda: NOW)) as h:
        whole = of_clock(Request.READ)
        assert await h.request(0, [whole[:3], whole[3:9], whole[9:]], [1, 7, 8]) == bytes(8) + NOW.to_bytes(8, "little")


@pytest.mark.parametrize(
    ("request_", "room", "status"),
    [
        (of_clock(Request.READ, 1), 16, Status.NO_SUCH_CLOCK),
        (of_clock(Request.CLOCK_CAPABILITIES, 0xFFFF), 16, Status.NO_SUCH_CLOCK),
        (of_clock(Request.READ_CROSS), 24, Status.NOT_SUPPORTED),
        (head(0x1003), 16, Status.NOT_SUPPORTED),
        (head(Request.READ), 16, Status.INVALID),
        (b"\x01", 16, Status.INVALID),
        (b"", 16, Status.INVALID),
        (of_clock(Request.READ), 8, Status.INVALID),
        (of_clock(Request.READ), 15, Status.INVALID),
        (of_clock(Request.READ), 1, Status.INVALID),
        (head(0x1003), 7, Status.INVALID),
    ],
)
def test_what_cannot_be_answered_has_a_status(request_: bytes, room: int, status: int) -> None:
    assert answer(request_, room, lambda: NOW)[0] == status


@pytest.mark.parametrize("now", [-1, 1 << 64])
def test_a_time_without_a_number(now: int) -> None:
    assert answer(of_clock(Request.READ), 16, lambda: now) == bytes([Status.ERROR]) + bytes(15)


@given(st.binary(max_size=64), st.integers(0, 64), st.integers(-(1 << 65), 1 << 65))
def test_any_request_has_an_answer_that_fits(request_: bytes, room: int, now: int) -> None:
    given_ = answer(request_, room, lambda: now)
    assert min(8, room) <= len(given_) <= room
    assert given_[:1] in (b"", b"\0", b"\2", b"\3", b"\4", b"\5")
    assert not any(given_[1:8])


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 20))
async def test_a_hostile_driver_does_not_break_the_device(request_: bytes, room: int) -> None:
    async with Harness(RtcDevice(lambda: NOW)) as h:
        if request_ or room:
            given_ = await h.request(0, [request_] if request_ else [], [room] if room else [])
            assert len(given_) >= min(8, room)


async def test_what_is_behind_a_request_is_nobodys() -> None:
    async with Harness(RtcDevice(lambda: NOW), memory_size=1 << 22) as h:
        reading = await h.request(0, [of_clock(Request.READ), b"x" * (1 << 20)], [16, 4096])
        assert reading[:16] == bytes(8) + NOW.to_bytes(8, "little")
