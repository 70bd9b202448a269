"""What each device is asked that it cannot do, in chains that are well formed."""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Sequence

from aiovmm.devices.virtio.vsock.packet import HOST_CID, STREAM, Op, pack_header
from tests.hostile.case import Case, Verdict
from tests.hostile.rig import Rig
from tests.hostile.targets import CID

__all__ = ["CASES"]

Does = Callable[[Rig], Awaitable[None]]
_MAX64 = (1 << 64) - 1


def asked(readable: Sequence[bytes], room: Sequence[int] = (), *, queue: int | None = None) -> Does:
    """That, on the target's queue or another one; it comes back, or the device breaks."""

    async def does(rig: Rig) -> None:
        ring = rig.queue if queue is None else rig.driver.queues[queue]
        ring.add(list(readable), list(room))
        ring.kick(force=True)
        await rig.settle()

    return does


def _request(kind: int, sector: int = 0) -> bytes:
    return struct.pack("<IIQ", kind, 0, sector)


DISK: dict[str, Does] = {
    **{
        f"type {kind}": asked([_request(kind)], [512, 1])
        for kind in (2, 3, 5, 7, 9, 10, 12, 15, 16, 0x80000000, 0xFFFFFFFF)
    },
    **{
        f"{what} at sector {sector:x}": asked([_request(kind, sector), *data], [*room, 1])
        for what, kind, data, room in (("read", 0, [], [512]), ("write", 1, [bytes(512)], []))
        for sector in (128, 1 << 40, 1 << 55, (1 << 55) - 1, _MAX64)
    },
    "half a header": asked([bytes(8)], [1]),
    "header and nothing to write to": asked([_request(0)]),
    "a header in bytes": asked([bytes([byte]) for byte in _request(0)], [512, 1]),
    "a status in a buffer of no length": asked([_request(0)], [512]),
    "half a sector": asked([_request(0)], [100, 1]),
    "an odd number of bytes": asked([_request(1), bytes(513)], [1]),
    "identification into one byte": asked([_request(8)], [1, 1]),
    "identification into much": asked([_request(8)], [4096, 1]),
    "flush with data": asked([_request(4), bytes(512)], [1]),
    "flush of a sector": asked([_request(4, _MAX64)], [1]),
    **{
        f"{what} of {sector:x} + {count:x}, flags {flags:x}": asked(
            [_request(kind), struct.pack("<QII", sector, count, flags)], [1]
        )
        for what, kind in (("discard", 11), ("zeroes", 13))
        for sector, count, flags in (
            (0, 0, 0),
            (127, 2, 0),
            (_MAX64, 1, 0),
            (0, 0xFFFFFFFF, 0),
            (1, _MAX64 & 0xFFFFFFFF, 1),
            (0, 1, 0xFFFFFFFE),
        )
    },
    "discard of half a segment": asked([_request(11), bytes(8)], [1]),
    "discard of very many segments": asked([_request(11), struct.pack("<QII", 0, 1, 0) * 4096], [1]),
    "discard of none": asked([_request(11)], [1]),
}
CARD: dict[str, Does] = {
    "half a header": asked([bytes(5)]),
    "a header alone": asked([bytes(12)]),
    "one byte of a frame": asked([bytes(13)]),
    "a frame of 64 KiB and more": asked([bytes(12), bytes(70000)]),
    **{
        f"offload flags {flags:x}, kind {kind:x}": asked(
            [struct.pack("<BBHHHHH", flags, kind, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF) + bytes(60)]
        )
        for flags in (0, 1, 0xFF)
        for kind in (0, 1, 3, 4, 5, 0x80, 0xFF)
    },
    "buffers to write to, for sending": asked([], [2048]),
    **{
        f"control {words.hex()}": asked([words], [1], queue=2)
        for words in (b"", b"\0", b"\xff\xff", b"\4\0\xff\xff", b"\1\0" + b"\xff" * 32, b"\2\0" + b"\xff" * 8)
    },
    "control without room for an answer": asked([b"\4\0\1\0"], queue=2),
}
CARD.pop("control ")  # a chain has something in it


def _packet(
    op: int,
    *,
    src: int = CID,
    dst: int = HOST_CID,
    length: int = 0,
    kind: int = STREAM,
    flags: int = 0,
    data: bytes = b"",
) -> Does:
    header = pack_header(src, dst, 77, 9, length, kind, op, flags, 0xFFFFFFFF, 0xFFFFFFFF)
    return asked([header + data] if data else [header])


SOCKETS: dict[str, Does] = {
    **{f"operation {op}": _packet(op) for op in (0, 2, 3, 4, 5, 6, 7, 8, 0xFFFF)},
    **{f"operation {op} of another": _packet(op, src=99) for op in (1, 5)},
    **{f"operation {op} to another": _packet(op, dst=99) for op in (1, 5)},
    **{f"type {kind}": _packet(1, kind=kind) for kind in (0, 2, 0xFFFF)},
    **{
        f"length {length:x}": _packet(Op.RW, length=length, data=b"x")
        for length in (0, 2, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF)
    },
    "half a header": asked([bytes(20)]),
    "a header in bytes": asked([bytes([byte]) for byte in pack_header(CID, HOST_CID, 78, 9, 0, STREAM, 1, 0, 0, 0)]),
    "a shutdown of nothing": _packet(Op.SHUTDOWN, flags=0xFFFFFFFF),
    "room to write to, for sending": asked([], [64]),
    "events are sent": asked([bytes(4)], queue=2),
    "room for packets of one byte": asked([], [1], queue=0),
    "room for half a header": asked([], [20], queue=0),
}
CONSOLE: dict[str, Does] = {
    "room to write to, for sending": asked([], [64]),
    "a megabyte": asked([b"x" * 4096] * 100),
    "escape sequences without an end": asked([b"\x1b[" + b"9;" * 2000]),
    "nothing to be received into": asked([b"x"], queue=0),
}
ENTROPY: dict[str, Does] = {
    "data for it": asked([b"x" * 64]),
    "data and room": asked([b"x"], [16]),
    "two megabytes": asked([], [1 << 20, 1 << 20]),
    "a byte at a time": asked([], [1] * 100),
}
BALLOON: dict[str, Does] = {
    **{
        f"{what} of {words.hex()[:24]}": asked([words], queue=queue)
        for what, queue in (("inflating", 0), ("deflating", 1))
        for words in (
            b"\0",
            b"\xff" * 4,
            struct.pack("<I", 0x1000),
            struct.pack("<I", 0x40000000),
            b"\xff" * 4096,
            struct.pack("<I", 0xE00) * 4096,
        )
    },
    "room, for pages": asked([], [64]),
    "statistics of a byte": asked([b"\1"], queue=2),
    "statistics of anything": asked([b"\xff" * 1000], queue=2),
}

CASES: list[Case] = [
    Case("requests", name, target, does, Verdict.EITHER)
    for target, asks in {
        "blk": DISK,
        "net": CARD,
        "vsock": SOCKETS,
        "console": CONSOLE,
        "rng": ENTROPY,
        "balloon": BALLOON,
    }.items()
    for name, does in asks.items()
]
