"""Malformed chains, VIRTIO 1.2 2.7.5: most have no meaning, so the device is to say that it needs a reset."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiovmm.virtqueue.driver import INDIRECT, NEXT, WRITE, Descriptor
from tests.hostile.case import Case, Verdict, for_all
from tests.hostile.rig import RAM, Rig

__all__ = ["CASES"]

Does = Callable[[Rig], Awaitable[None]]
HERE = 0x100000
_LAPIC, _ECAM, _BAR = 0xFEE00000, 0xE8000000, 0xC0000000
_TOP = (1 << 64) - 8


def raw(*descriptors: Descriptor, head: int | None = None) -> Does:
    async def does(rig: Rig) -> None:
        rig.chain(*descriptors, head=head)

    return does


def as_part(address: int, length: int) -> Does:
    """The good request, but one of its descriptors is that: the first, as far as the device looks at it."""

    async def does(rig: Rig) -> None:
        first, *rest = rig.good_chain()
        parts = [Descriptor(address, length, first.flags), *rest]
        last = len(parts) - 1
        linked = [Descriptor(d.address, d.length, d.flags | NEXT * (i < last), i + 1) for i, d in enumerate(parts)]
        rig.chain(*linked)

    return does


def indirect(count: int, *, flags: int = INDIRECT, length: int | None = None, inner: int = 0) -> Does:
    """`count` good descriptors in a table, whose own descriptor has these flags and this length; `inner` is added to theirs."""

    async def does(rig: Rig) -> None:
        parts = [Descriptor(HERE, 1, inner | NEXT * (i + 1 < count), i + 1) for i in range(count)]
        table = rig.queue.table(parts or [Descriptor(HERE, 1)])
        rig.chain(Descriptor(table, 16 * count if length is None else length, flags, 0))

    return does


def with_size(make: Callable[[int], list[Descriptor]], head: Callable[[int], int] = lambda size: 0) -> Does:
    async def does(rig: Rig) -> None:
        size = rig.queue.size
        rig.chain(*make(size), head=head(size))

    return does


MALFORMED: dict[str, Does] = {
    "loop of one": raw(Descriptor(HERE, 1, NEXT, 0)),
    "loop of two": raw(Descriptor(HERE, 1, NEXT, 1), Descriptor(HERE, 1, NEXT, 0)),
    "loop of all": with_size(lambda size: [Descriptor(HERE, 1, NEXT, (i + 1) % size) for i in range(size)]),
    "next just outside": with_size(lambda size: [Descriptor(HERE, 1, NEXT, size)]),
    "next far outside": raw(Descriptor(HERE, 1, NEXT, 0xFFFF)),
    "head just outside": with_size(lambda size: [], lambda size: size),
    "head far outside": raw(head=0xFFFF),
    "readable behind writable": raw(Descriptor(HERE, 1, WRITE | NEXT, 1), Descriptor(HERE, 1)),
    "longer than 4 GiB": raw(Descriptor(HERE, 0xFFFFFFFF, NEXT, 1), Descriptor(HERE, 0xFFFFFFFF)),
    "indirect in an indirect table": indirect(1, inner=INDIRECT),
    "indirect and next": indirect(1, flags=INDIRECT | NEXT),
    "indirect of odd length": indirect(1, length=17),
    "indirect of no length": indirect(1, length=0),
    "indirect shorter than an entry": indirect(1, length=8),
    "indirect without memory": raw(Descriptor(1 << 40, 16, INDIRECT)),
    "indirect at the end of addresses": raw(Descriptor(_TOP, 16, INDIRECT)),
    "indirect across the end of memory": raw(Descriptor(RAM - 8, 16, INDIRECT)),
    "indirect of 4 GiB": indirect(1, length=0xFFFFFFF0),
    "indirect loops": indirect(1, inner=NEXT),
    "indirect next outside": indirect(2, inner=NEXT),
}

WITHOUT_MEMORY: dict[str, Does] = {
    "buffer beyond memory": as_part(1 << 40, 64),
    "buffer across the end of memory": as_part(RAM - 8, 64),
    "buffer at the end of addresses": as_part(_TOP, 64),
    "buffer at the top bit": as_part(1 << 63, 64),
    "buffer on the local APIC": as_part(_LAPIC, 64),
    "buffer in configuration space": as_part(_ECAM, 64),
    "buffer on registers": as_part(_BAR, 64),
}

ODD: dict[str, Does] = {
    "nothing but an empty readable": raw(Descriptor(HERE, 0)),
    "nothing but an empty writable": raw(Descriptor(HERE, 0, WRITE)),
    "empty without memory": raw(Descriptor(1 << 40, 0)),
    "one byte readable": raw(Descriptor(HERE, 1)),
    "one byte writable": raw(Descriptor(HERE, 1, WRITE)),
    "unknown flags": raw(Descriptor(HERE, 1, 0xFFF8)),
    "unknown flags, writable": raw(Descriptor(HERE, 1, 0xFFF8 | WRITE)),
    "all of memory to read": raw(Descriptor(0, RAM)),
    "all of memory to read, many times": with_size(
        lambda size: [Descriptor(0, RAM, NEXT * (i + 1 < size), (i + 1) % size) for i in range(size)]
    ),
    "as many as there are, a byte each": with_size(
        lambda size: [Descriptor(HERE, 1, NEXT * (i + 1 < size), (i + 1) % size) for i in range(size)]
    ),
    "as many as there are, writable": with_size(
        lambda size: [Descriptor(HERE, 1, WRITE | NEXT * (i + 1 < size), (i + 1) % size) for i in range(size)]
    ),
    "an indirect table as long as the queue": indirect(128, inner=0),
    "an indirect table longer than the queue": indirect(1024),
}


def onto(part: str) -> Does:
    """A good request whose buffer is a part of the ring itself: the device reads it, or writes over it."""

    async def does(rig: Rig) -> None:
        queue = rig.queue
        address = {"table": queue.desc, "available": queue.avail, "used": queue.used_ring}[part]
        rig.chain(Descriptor(address, 64, NEXT, 1), Descriptor(address, 64, WRITE))

    return does


ON_THE_RING = {f"buffer is the {part} ring": onto(part) for part in ("table", "available", "used")}

CASES: list[Case] = [
    *for_all("chains", MALFORMED, Verdict.BREAKS),
    *for_all("chains", WITHOUT_MEMORY, Verdict.EITHER),
    *for_all("chains", ODD, Verdict.EITHER),
    *for_all("chains", ON_THE_RING, Verdict.EITHER),
]
