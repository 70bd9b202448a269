"""How long one thread looks for what another is about to do, before it sleeps or asks to be woken.

To be woken on an idle processor takes 20 us and more, several times what serving an exit or a chain takes. So a vCPU that waits
for an answer, the loop after any exits, and a console's output look for a while first. What the guest posts without
waiting for anything does not wake the loop at all, which looks for that by itself after DOZE, and after up to LONGEST_DOZE as
long when it has found some each time: of a guest that prints on and on, as at boot.
"""

from __future__ import annotations

import os
from functools import cache

__all__ = ["DOZE", "LONGEST_DOZE", "LOOK_NS", "look_ns"]

LOOK_NS = 50_000
"""Nanoseconds of a look in vain."""

DOZE = 0.01
"""Seconds: less than anybody notices."""

LONGEST_DOZE = 4
"""Times DOZE: a screen's picture that changes 25 times a second."""


@cache
def look_ns() -> int:
    """LOOK_NS, or 0 on a host with a single processor, where the other thread cannot run while this one looks."""
    return LOOK_NS if len(os.sched_getaffinity(0)) > 1 else 0
