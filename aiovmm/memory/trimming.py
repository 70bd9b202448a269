"""Giving back to the system what guests had that are no more."""

from __future__ import annotations

from collections import deque

from aiovmm.native import lib, room
from aiovmm.runtime import crew

_MANY = 32  # guests that were closed or have gone, of which the C library may have kept a megabyte
left: deque[None] = deque(maxlen=_MANY)
"""One for each GuestMemory that was closed, and one when it is no more: with it goes what its guest had beside the mappings, at
once, if nobody has kept a part of it. No more than matter, for it may never be quiet."""
_trimmed = False  # for many that had left, and not since


def _trim() -> bool:
    """Once so many have left and all is quiet, have the system get back what they had; and once more what was on its way then.
    True: that is to come."""
    global _trimmed
    many = len(left) >= _MANY
    if many or _trimmed:
        left.clear()
        lib.avmm_mem_trim()
        room.give_back()
    _trimmed = many
    return many


crew.at_rest.append(_trim)
