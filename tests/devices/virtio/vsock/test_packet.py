"""The packets on the ring."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.devices.virtio.vsock.packet import HEADER_SIZE, LENGTH_AT, Header, Op, parse_headers

U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
HEADERS = st.builds(Header, U64, U64, U32, U32, U32, U16, U16, U32, U32, U32)


@given(st.lists(HEADERS, max_size=5))
def test_headers_survive_the_ring(headers: list[Header]) -> None:
    data = b"".join(header.pack() for header in headers)
    assert len(data) == HEADER_SIZE * len(headers)
    assert parse_headers(data) == headers
    assert [Header.parse(data[at : at + HEADER_SIZE]) for at in range(0, len(data), HEADER_SIZE)] == headers


@given(st.binary(min_size=HEADER_SIZE, max_size=2 * HEADER_SIZE))
def test_any_bytes_are_a_header(data: bytes) -> None:
    assert Header.parse(data).pack() == data[:HEADER_SIZE]


def test_the_layout_is_that_of_struct_virtio_vsock_hdr() -> None:
    header = Header(2, 42, 1024, 5000, 16, 1, Op.RW, 3, 65536, 7)
    assert header.pack() == bytes.fromhex(
        "0200000000000000 2a00000000000000 00040000 88130000 10000000 0100 0500 03000000 00000100 07000000"
    )
    assert header.pack()[LENGTH_AT : LENGTH_AT + 4] == (16).to_bytes(4, "little")


def test_a_short_header_is_refused() -> None:
    with pytest.raises(Exception, match="44 bytes"):
        Header.parse(bytes(HEADER_SIZE - 1))
