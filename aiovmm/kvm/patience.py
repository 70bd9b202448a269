"""How the two sides of an exit wait for each other on this host.

To be woken on an idle processor takes 20 us and more, several times what serving an exit takes. So both sides first look for each
other for a while, and what the guest posts without waiting for anything does not wake the loop, which looks by itself soon.

Neither is done on a processor that QEMU emulates in software (TCG, as of 7.2), whose AMD-V confuses guest and host now and
then: a guest that was entered at its own address comes out, of the same VMRUN and on the same processor, with the host's RIP (the
instruction after VMRUN) and CR3. With either it does so in one boot of about fifteen; docs/benchmarks.md has the trace.
"""

from __future__ import annotations

import os
from functools import cache

from aiovmm.dataclass import dataclass
from aiovmm.native import lib

__all__ = ["Patience", "patience"]


@dataclass(frozen=True)
class Patience:
    """`look_ns`: nanoseconds that a side looks before it sleeps; 0: it sleeps at once. `doze`: seconds after which the loop looks
    for lazily posted writes by itself; None: they wake it."""

    look_ns: int
    doze: float | None


_EAGER = Patience(50_000, 0.003)
_PLAIN = Patience(0, None)


@cache
def patience() -> Patience:
    """This host's."""
    if lib.avmm_is_tcg():
        return _PLAIN
    if len(os.sched_getaffinity(0)) < 2:
        return Patience(0, _EAGER.doze)  # the other side cannot run while this one looks
    return _EAGER
