"""What a socket device has done."""

from __future__ import annotations

from aiovmm.runtime.dataclass import dataclass

__all__ = ["VsockCounters"]


@dataclass(frozen=True)
class VsockCounters:
    """`connections` that there are; bytes of all that there were, as the guest sees directions."""

    connections: int = 0
    rx_bytes: int = 0
    tx_bytes: int = 0
