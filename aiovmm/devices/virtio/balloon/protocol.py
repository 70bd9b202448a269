"""The balloon's feature bits, configuration space, page lists and statistics, VIRTIO 1.2 §5.5. Pure."""

from __future__ import annotations

import struct

from aiovmm.errors import ChainError
from aiovmm.runtime.dataclass import dataclass

__all__ = [
    "DEFLATE_ON_OOM",
    "MUST_TELL_HOST",
    "PAGE",
    "REPORTING",
    "STATS_VQ",
    "BalloonStats",
    "config_space",
    "page_parts",
    "page_runs",
    "parse_stats",
]

MUST_TELL_HOST = 1 << 0
STATS_VQ = 1 << 1
DEFLATE_ON_OOM = 1 << 2
REPORTING = 1 << 5

PAGE = 4096
"""Bytes: pages of the balloon are of this size, whatever those of the guest are."""

PAGES_AT_ONCE = 1 << 14
PAGES_A_TURN = 1 << 10
"""Numbers of pages in one chain; Linux sends 256. Descriptors may overlap, so that a small guest could send very many."""

_NUMBER = struct.Struct("<I")
_STAT = struct.Struct("<HQ")
_STATS_LIMIT = 64 * _STAT.size


def config_space(target: int, actual: int) -> bytes:
    """`struct virtio_balloon_config` less what no feature here uses, for sizes in bytes."""
    return struct.pack("<II", target // PAGE, actual // PAGE)


def page_parts(data: bytes) -> list[bytes]:
    """An array of page numbers in pieces, none of which is more work than a turn of the loop has room for: all that one request
    may name are 20 ms. Raises ChainError."""
    if len(data) % _NUMBER.size or len(data) > PAGES_AT_ONCE * _NUMBER.size:
        raise ChainError(f"{len(data)} bytes are no list of at most {PAGES_AT_ONCE} pages")
    step = PAGES_A_TURN * _NUMBER.size
    return [data[at : at + step] for at in range(0, len(data), step)]


def page_runs(data: bytes) -> list[tuple[int, int]]:
    """An array of page numbers as (address, size in bytes) of contiguous pieces, ascending."""
    runs: list[tuple[int, int]] = []
    for number in sorted({number for (number,) in _NUMBER.iter_unpack(data)}):
        address = number * PAGE
        if runs and sum(runs[-1]) == address:
            runs[-1] = (runs[-1][0], runs[-1][1] + PAGE)
        else:
            runs.append((address, PAGE))
    return runs


@dataclass(frozen=True)
class BalloonStats:
    """What the guest says of its memory, in bytes and counts since its boot; None where its kernel does not say (§5.5.6.4)."""

    swapped_in: int | None = None
    swapped_out: int | None = None
    major_faults: int | None = None
    minor_faults: int | None = None
    free: int | None = None
    total: int | None = None
    available: int | None = None  # as MemAvailable
    disk_caches: int | None = None
    hugetlb_allocations: int | None = None
    hugetlb_failures: int | None = None


_NAMES = (
    "swapped_in",
    "swapped_out",
    "major_faults",
    "minor_faults",
    "free",
    "total",
    "available",
    "disk_caches",
    "hugetlb_allocations",
    "hugetlb_failures",
)


def parse_stats(data: bytes) -> BalloonStats:
    """`struct virtio_balloon_stat`s, in any order; tags of later specifications are passed over. Raises ChainError."""
    if len(data) > _STATS_LIMIT or len(data) % _STAT.size:
        raise ChainError(f"{len(data)} bytes are no list of statistics")
    return BalloonStats(**{_NAMES[tag]: value for tag, value in _STAT.iter_unpack(data) if tag < len(_NAMES)})
