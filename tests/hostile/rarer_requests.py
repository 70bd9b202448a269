"""What the devices of `rarer` are asked that they cannot do, or that would make them work for long. Where the specification says
what the answer is, that is looked at, and the device serves on."""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable

from aiovmm.devices.virtio.iommu.wire import Status
from aiovmm.devices.virtio.mem import BLOCK_SIZE
from aiovmm.devices.virtio.mem.protocol import Answer, Kind
from tests.hostile.case import Case, Verdict
from tests.hostile.rarer import BLOCKS, ENDPOINT, PROBE_SIZE, START
from tests.hostile.requests import asked
from tests.hostile.rig import Rig

__all__ = ["CASES"]

Does = Callable[[Rig], Awaitable[None]]
_MAX32, _MAX64 = (1 << 32) - 1, (1 << 64) - 1
_TOP = (1 << 48) - 1  # the last address that can be mapped
_PAGE = 4096
DOMAIN = 5


def answered(answer: bytes, request: bytes, room: int, *before: bytes) -> Does:
    """The end of the answer to `request` is that, after those of `before` were carried out."""

    async def does(rig: Rig) -> None:
        for each in before:
            assert (await rig.driver.request(0, [each], [room]))[:1] == b"\0"
        given = await rig.driver.request(0, [request], [room] if room else [])
        assert given[len(given) - len(answer) :] == answer, given.hex()
        assert bool(given) == bool(answer)

    return does


# -- the IOMMU


def attach(domain: int = DOMAIN, endpoint: int = ENDPOINT, flags: int = 0, reserved: int = 0) -> bytes:
    return struct.pack("<B3xIIII", 1, domain, endpoint, flags, reserved)


def detach(domain: int = DOMAIN, endpoint: int = ENDPOINT, reserved: int = 0) -> bytes:
    return struct.pack("<B3xIIQ", 2, domain, endpoint, reserved)


def map_(start: int, end: int, physical: int = 0, flags: int = 3, domain: int = DOMAIN) -> bytes:
    return struct.pack("<B3xIQQQI", 3, domain, start, end, physical, flags)


def unmap(start: int, end: int, domain: int = DOMAIN) -> bytes:
    return struct.pack("<B3xIQQ4x", 4, domain, start, end)


def probe(endpoint: int = ENDPOINT) -> bytes:
    return struct.pack("<B3xI", 5, endpoint) + b"\xff" * 64  # reserved: ignored


def status(expected: Status, request: bytes, *before: bytes) -> Does:
    return answered(bytes([expected, 0, 0, 0]), request, 4, *before)


async def many_mappings(rig: Rig) -> None:
    """And all of them away at once, by each of the ways there are."""
    ends = {"unmap": unmap(0, _TOP), "detach": detach(), "to another domain": attach(DOMAIN + 1)}
    for end in ends.values():
        await rig.driver.request(0, [attach()], [4])
        for page in range(60):
            at = 2 * page * _PAGE
            assert await rig.driver.request(0, [map_(at, at + _PAGE - 1, at)], [4]) == bytes(4)
        assert await rig.driver.request(0, [end], [4]) == bytes(4)
        assert await rig.driver.request(0, [attach()], [4]) == bytes(4)
        assert await rig.driver.request(0, [map_(0, _PAGE - 1)], [4]) == bytes(4)
        assert await rig.driver.request(0, [unmap(0, _TOP)], [4]) == bytes(4)


async def bypass_is_written(rig: Rig) -> None:
    """By 0, and by what it cannot be; it is put back, for it outlives a reset."""
    from aiovmm.pci.capabilities import VirtioCapType
    from aiovmm.pci.driver import finished

    at = rig.driver.structures[VirtioCapType.DEVICE].address + 36
    for value in (0, 2, 0xFF, 1, 0, 1):
        await finished(rig.guest.write(at, bytes([value])))
        assert rig.guest.read(at, 1)[0] <= 1


IOMMU: dict[str, Does] = {
    "attach of nobody": status(Status.NOENT, attach(endpoint=99)),
    "attach with reserved bytes": status(Status.INVAL, attach(reserved=1)),
    **{f"attach with flags {flags:x}": status(Status.INVAL, attach(flags=flags)) for flags in (2, 3, 0x80000000)},
    "attach twice": status(Status.OK, attach(), attach()),
    "attach to any domain": status(Status.OK, attach(_MAX32), attach(0)),
    "attach to a bypass domain without": status(Status.OK, attach(), attach(flags=1), detach()),
    "detach of nobody": status(Status.NOENT, detach(endpoint=_MAX32)),
    "detach from no domain": status(Status.INVAL, detach()),
    "detach from another": status(Status.INVAL, detach(DOMAIN + 1), attach()),
    "detach with reserved bytes": status(Status.OK, detach(reserved=_MAX64), attach()),
    "detach twice": status(Status.INVAL, detach(), attach(), detach()),
    "map in no domain": status(Status.NOENT, map_(0, _PAGE - 1)),
    "map in a domain that has ended": status(Status.NOENT, map_(0, _PAGE - 1), attach(), detach()),
    "map in a bypass domain": status(Status.INVAL, map_(0, _PAGE - 1), attach(flags=1)),
    **{
        f"map with flags {flags:x}": status(Status.INVAL, map_(0, _PAGE - 1, flags=flags), attach())
        for flags in (4, 8, 0xFFFFFFFF)
    },
    **{
        f"map of {start:x} to {end:x} at {physical:x}": status(expected, map_(start, end, physical), attach())
        for start, end, physical, expected in (
            (1, _PAGE - 1, 0, Status.RANGE),
            (0, _PAGE, 0, Status.RANGE),
            (0, _PAGE - 1, 1, Status.RANGE),
            (_PAGE, 0, 0, Status.INVAL),
            (0, _TOP + _PAGE, 0, Status.RANGE),
            (0, _MAX64, 0, Status.RANGE),
            (1 << 63, (1 << 63) + _PAGE - 1, 0, Status.RANGE),
            (0, 2 * _PAGE - 1, _MAX64 - _PAGE + 1, Status.RANGE),
            (0, _TOP, 0, Status.OK),
            (0, _PAGE - 1, 1 << 63, Status.OK),
        )
    },
    "map twice": status(Status.INVAL, map_(0, _PAGE - 1), attach(), map_(0, _PAGE - 1)),
    "map around": status(Status.INVAL, map_(0, 4 * _PAGE - 1), attach(), map_(_PAGE, 2 * _PAGE - 1)),
    "map within": status(Status.INVAL, map_(_PAGE, 2 * _PAGE - 1), attach(), map_(0, 4 * _PAGE - 1)),
    "unmap in no domain": status(Status.NOENT, unmap(0, _TOP)),
    "unmap in a bypass domain": status(Status.INVAL, unmap(0, _TOP), attach(flags=1)),
    "unmap of nothing": status(Status.OK, unmap(0, _MAX64), attach()),
    "unmap backwards": status(Status.INVAL, unmap(_PAGE, 0), attach()),
    "unmap of the first half": status(Status.RANGE, unmap(0, _PAGE - 1), attach(), map_(0, 2 * _PAGE - 1)),
    "unmap of the last half": status(Status.RANGE, unmap(_PAGE, _TOP), attach(), map_(0, 2 * _PAGE - 1)),
    "unmap of all but a byte": status(Status.RANGE, unmap(1, _TOP), attach(), map_(0, _TOP)),
    "many mappings": many_mappings,
    "probe of nobody": answered(bytes([Status.NOENT, 0, 0, 0]), probe(_MAX32), PROBE_SIZE + 4),
    "probe with little room": answered(bytes([Status.INVAL, 0, 0, 0]), probe(), 100),
    **{f"type {kind}": answered(b"", bytes([kind]) + bytes(71), 516) for kind in (0, 6, 7, 255)},
    "no room for a status": answered(b"", attach(), 3),
    "no room at all": answered(b"", attach(), 0),
    **{f"half of type {kind}": answered(bytes([4, 0, 0, 0]), bytes([kind]) + bytes(8), 4) for kind in (1, 2, 3, 4)},
    "bypass is written": bypass_is_written,
}

# -- memory


def memory(kind: int, block: int = 0, count: int = 0, *, off: int = 0, padding: int = 0) -> bytes:
    return struct.pack("<HHIQHHI", kind, padding, padding, START + block * BLOCK_SIZE + off, count, padding, padding)


def judged(expected: Answer, request: bytes, *before: bytes) -> Does:
    async def does(rig: Rig) -> None:
        for each in before:
            assert (await rig.driver.request(0, [each], [10]))[0] == Answer.ACK
        assert (await rig.driver.request(0, [request], [10]))[0] == expected

    return does


async def every_other_block(rig: Rig) -> None:
    """And all of them away at once, again and again."""
    for _ in range(5):
        for block in range(0, BLOCKS, 2):
            assert (await rig.driver.request(0, [memory(Kind.PLUG, block, 1)], [10]))[0] == Answer.ACK
        state = await rig.driver.request(0, [memory(Kind.STATE, 0, BLOCKS)], [10])
        assert state == struct.pack("<H6xH", Answer.ACK, 2)
        assert (await rig.driver.request(0, [memory(Kind.UNPLUG_ALL)], [10]))[0] == Answer.ACK


MEM: dict[str, Does] = {
    **{
        f"{kind.name.lower()} of {block} + {off:x}, {count}": judged(Answer.ERROR, memory(kind, block, count, off=off))
        for kind in (Kind.PLUG, Kind.UNPLUG, Kind.STATE)
        for block, off, count in ((0, 0, 0), (0, 1, 1), (BLOCKS, 0, 1), (BLOCKS - 1, 0, 2), (-1, 0, 1), (0, 0, 0xFFFF))
    },
    "plug twice": judged(Answer.ERROR, memory(Kind.PLUG, 1, 1), memory(Kind.PLUG, 0, 3)),
    "plug over one": judged(Answer.ERROR, memory(Kind.PLUG, 0, 3), memory(Kind.PLUG, 1, 1)),
    "unplug twice": judged(Answer.ERROR, memory(Kind.UNPLUG, 0, 1), memory(Kind.PLUG, 0, 1), memory(Kind.UNPLUG, 0, 1)),
    "unplug of half that is there": judged(Answer.ERROR, memory(Kind.UNPLUG, 0, 2), memory(Kind.PLUG, 0, 1)),
    "padding": judged(Answer.ACK, memory(Kind.PLUG, 0, 1, padding=0xFFFF)),
    "unplug all with an address": judged(Answer.ACK, memory(Kind.UNPLUG_ALL, -1, 0xFFFF, off=1)),
    **{f"type {kind}": judged(Answer.ERROR, memory(kind, 0, 1)) for kind in (4, 0x100, 0xFFFF)},
    "every other block": every_other_block,
}
BROKEN_MEM: dict[str, Does] = {
    "half a request": asked([bytes(12)], [10]),
    "no room for the answer": asked([memory(Kind.PLUG, 0, 1)], [9]),
    "no room at all": asked([memory(Kind.UNPLUG_ALL)]),
}

# -- the others

PMEM: dict[str, Does] = {
    **{f"type {kind:x}": answered(b"\xff" * 4, struct.pack("<I", kind), 4) for kind in (1, 2, 0xFF, _MAX32)},
    "more than a request": answered(bytes(4), bytes(4096), 4),
}
BROKEN_PMEM: dict[str, Does] = {
    "half a request": asked([b"\0\0"], [4]),
    "no room for the answer": asked([bytes(4)], [3]),
    "room alone": asked([], [8]),
}


def _clock(kind: int, number: int = 0) -> bytes:
    return struct.pack("<H6xH6x", kind, number)


def clock_says(code: int, request: bytes, room: int) -> Does:
    async def does(rig: Rig) -> None:
        assert (await rig.driver.request(0, [request], [room]))[:1] == bytes([code])

    return does


CLOCK: dict[str, Does] = {
    **{f"type {kind:x}": clock_says(2, _clock(kind), 24) for kind in (0, 2, 3, 0x1003, 0x1004, 0xFFFF)},
    **{
        f"{kind:x} of clock {n}": clock_says(3, _clock(kind, n), 16) for kind in (1, 0x1001, 0x1002) for n in (1, 65535)
    },
    "half a head": clock_says(4, b"\1\0\0", 16),
    "a head alone": clock_says(4, _clock(1)[:8], 16),
    **{f"room for {room}": clock_says(4, _clock(1), room) for room in (1, 7, 8, 15)},
    "much more than a request": clock_says(0, _clock(1) + bytes(100000), 4096),
    "no room at all": asked([_clock(1)]),
}

WATCHDOG: dict[str, Does] = {"much room": asked([], [1 << 20]), "a byte at a time": asked([], [1] * 8)}
BROKEN_WATCHDOG: dict[str, Does] = {"something to read": asked([b"x"], [4]), "nothing to write to": asked([b"x"])}

CASES: list[Case] = [
    Case("requests", name, target, does, verdict)
    for target, serves, breaks in (
        ("iommu", IOMMU, {}),
        ("mem", MEM, BROKEN_MEM),
        ("pmem", PMEM, BROKEN_PMEM),
        ("rtc", CLOCK, {}),
        ("watchdog", WATCHDOG, BROKEN_WATCHDOG),
    )
    for asks, verdict in ((serves, Verdict.SERVES), (breaks, Verdict.BREAKS))
    for name, does in asks.items()
]
