"""Parsers that have no fuzz target of their own (those: tests/fuzz/test_limits.py), with each number at its limits: what comes of
it, or the error that is meant for it. Kernels, modules, vhost-user messages and chains draw from limits in their own tests."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.boot.unpack import UnpackError, unpack
from aiovmm.devices.virtio.balloon.protocol import page_runs, parse_stats
from aiovmm.devices.virtio.iommu import wire as iommu
from aiovmm.devices.virtio.mem.protocol import parse as parse_mem
from aiovmm.devices.virtio.net.control import parse_command
from aiovmm.devices.virtio.qcow2 import parse_header
from aiovmm.devices.virtio.rtc.protocol import answer as answer_rtc
from aiovmm.errors import ChainError, ImageError, PeerError, UsageError
from aiovmm.pool.workers.frames import FROM_WORKER, MOST_DATA, Decoder, encode
from aiovmm.sandboxes.firewall import Firewall, Rules
from aiovmm.vfio.host_config import capabilities, identity, memory_bars
from tests.at_limits import Order, everywhere, several
from tests.boot.images import COMPRESSORS, payload
from tests.sandboxes.frames import (
    GATEWAY,
    GATEWAY6,
    GUEST,
    GUEST6,
    RESOLVER,
    RESOLVER6,
    address,
    answer,
    answered,
    ask,
    datagram,
    syn,
)

Check = Callable[[bytes], object]


def guards(data: bytes) -> None:
    """A frame from the guest and, as one from the network, its like."""
    wall = Firewall(
        Rules(("example.org", "1.2.3.4")),
        guest=(GUEST, GUEST6),
        gateways=(GATEWAY, GATEWAY6),
        resolvers=(RESOLVER, RESOLVER6),
        is_own=lambda _: False,
    )
    wall.from_guest(ask("example.org"), 0.0)
    for judge in (wall.from_guest, wall.to_guest):
        verdict = judge(data, 1.0)
        assert not (verdict.passes and verdict.reply)


def config(data: bytes) -> None:
    identity(data)
    assert len(capabilities(data)) <= 48
    for sizes in ((1 << 12,) * 6, (1 << 40, 0, 1 << 14, 0, 16, 1 << 20)):
        memory_bars(data, sizes)


def stops(data: bytes) -> None:
    decoder = Decoder(FROM_WORKER)
    for _ in decoder.feed(data):
        pass
    assert len(decoder) <= len(data)


def taken_apart(data: bytes) -> None:
    """At most what the sizes in it may add up to."""
    assert len(unpack(data)) <= 1 << 20


def capability_chain() -> bytes:
    space = bytearray(range(256))
    space[0x06:0x08] = (0x10).to_bytes(2, "little")
    space[0x34], space[0x10] = 0x40, 0x0C  # BAR 0 has 64 bits
    for at, kind, following in (
        (0x40, 0x01, 0x50),
        (0x50, 0x05, 0x70),
        (0x70, 0x11, 0x80),
        (0x80, 0x10, 0xC0),
        (0xC0, 0x09, 0),
    ):
        space[at], space[at + 1] = kind, following
    return bytes(space)


QCOW2 = struct.pack(">4sIQI", b"QFI\xfb", 3, 120, 4).ljust(100, b"\0") + struct.pack(">I", 104)
QCOW2 += struct.pack(">II", 0xE2792ACA, 3) + b"raw".ljust(8, b"\0") + b"base" + bytes(64)
READERS: dict[str, tuple[Check, bytes, tuple[type[Exception], ...]]] = {
    "a question": (guards, ask("example.org"), ()),
    "an answer": (guards, answered(answer("example.org", address("example.org", "9.8.7.6"))), ()),
    "IPv6": (guards, datagram("2600::1"), ()),
    "TCP": (guards, syn("1.2.3.4"), ()),
    "qcow2": (lambda data: parse_header(data, "x"), QCOW2, (ImageError,)),
    "iommu, a mapping": (iommu.parse, struct.pack("<B3xIQQQI", 3, 1, 0, 4095, 1 << 20, 3), (iommu.Malformed,)),
    "iommu, a domain": (iommu.parse, struct.pack("<B3xIII4x", 1, 1, 8, 0), (iommu.Malformed,)),
    "net, offloads": (parse_command, struct.pack("<BBQ", 5, 0, 3), ()),
    "net, pairs": (parse_command, struct.pack("<BBH", 4, 0, 2), ()),
    "balloon, pages": (page_runs, struct.pack("<4I", 1, 2, 3, 9), ()),
    "balloon, statistics": (parse_stats, struct.pack("<HQHQ", 4, 1 << 30, 5, 1 << 31), (ChainError,)),
    "memory": (parse_mem, struct.pack("<H6xQH6x", 0, 1 << 32, 2), (ChainError,)),
    "clock": (lambda data: answer_rtc(data, 16, lambda: 1), struct.pack("<H6xH6x", 1, 0), ()),
    "configuration space": (config, capability_chain(), (UsageError,)),
    "a worker's frame": (stops, encode({"op": "x", "n": 7}, b"data"), (PeerError,)),
    **{
        f"kernel, {name}": (taken_apart, payload(b"code" * 50, name), (UnpackError,))
        for name in COMPRESSORS
        if name != "none"
    },
}


@pytest.mark.parametrize("name", READERS)
def test_a_number_at_its_limit(name: str) -> None:
    read, good, refused = READERS[name]
    read(good)
    for data in everywhere(good[:128], orders=("little", "big")):
        with suppress(*refused):
            read(data + good[128:])


@given(st.data(), st.sampled_from(sorted(READERS)))
def test_several_at_their_limits(data: st.DataObject, name: str) -> None:
    read, good, refused = READERS[name]
    orders: tuple[Order, ...] = ("little", "big")
    order = data.draw(st.sampled_from(orders))
    with suppress(*refused):
        read(data.draw(several(good, order=order)))


def test_a_worker_says_no_more_than_is_told() -> None:
    """Sizes that no frame has are refused when they are read, and not waited for."""
    for size, more in ((FROM_WORKER.size + 1, 0), (2, MOST_DATA + 1), (2**32 - 1, 2**32 - 1)):
        with pytest.raises(PeerError, match="at most"):
            list(Decoder(FROM_WORKER).feed(struct.pack("<II", size, more)))
    for number in ("1e999", "-1e999", "NaN", "9" * 5000):
        text = b'{"op": %s}' % number.encode()
        with suppress(PeerError):
            for message, _ in Decoder(FROM_WORKER).feed(struct.pack("<II", len(text), 0) + text):
                json.dumps(message)
