"""What a network device has moved and lost."""

from __future__ import annotations

from dataclasses import astuple, dataclass

__all__ = ["NetCounters"]


@dataclass(frozen=True)
class NetCounters:
    """Since the device was made, over all resets; as the guest sees directions. Bytes are those of Ethernet frames."""

    rx_packets: int = 0
    rx_bytes: int = 0
    rx_dropped: int = 0
    """Too large for the guest's buffers, or arrived while the link was down or no driver was there."""
    tx_packets: int = 0
    tx_bytes: int = 0
    tx_dropped: int = 0
    """The host had no room, its interface was not up, or the link was down."""
    tx_errors: int = 0
    """Frames or virtio headers that are not legal."""

    def __add__(self, other: NetCounters) -> NetCounters:
        return NetCounters(*map(sum, zip(astuple(self), astuple(other), strict=True)))
