"""How the two sides of an exit wait for each other on this host.

To be woken on an idle processor takes 20 us and more, several times what serving an exit takes. So both sides first look for each
other for a while, and what the guest posts without waiting for anything does not wake the loop, which looks by itself soon.
"""

from __future__ import annotations

import os
from functools import cache

from aiovmm.dataclass import dataclass

__all__ = ["Patience", "patience"]


@dataclass(frozen=True)
class Patience:
    """`look_ns`: nanoseconds that a side looks before it sleeps; 0: it sleeps at once. `doze`: seconds after which the loop looks
    for lazily posted writes by itself."""

    look_ns: int
    doze: float


_LOOK_NS = 50_000
_DOZE = 0.003  # less than anybody notices


@cache
def patience() -> Patience:
    """This host's: with a single processor the other side cannot run while this one looks."""
    return Patience(_LOOK_NS if len(os.sched_getaffinity(0)) > 1 else 0, _DOZE)
