"""Feature bits of a network device (VIRTIO 1.2 §5.1.3) and the offloads of a TAP that stand behind them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

__all__ = [
    "ALL_OFFLOADS",
    "CSUM",
    "CTRL_GUEST_OFFLOADS",
    "CTRL_VQ",
    "GUEST_ANNOUNCE",
    "GUEST_CSUM",
    "GUEST_ECN",
    "GUEST_TSO4",
    "GUEST_TSO6",
    "GUEST_UFO",
    "GUEST_USO4",
    "GUEST_USO6",
    "HOST_ECN",
    "HOST_TSO4",
    "HOST_TSO6",
    "HOST_UFO",
    "HOST_USO",
    "MAC",
    "MQ",
    "MRG_RXBUF",
    "MTU",
    "OFFLOADS",
    "STATUS",
    "Offloads",
    "consistent",
    "gso_types",
    "offered",
    "supported",
    "tun_offloads",
    "withheld",
]

CSUM = 1 << 0
GUEST_CSUM = 1 << 1
CTRL_GUEST_OFFLOADS = 1 << 2
MTU = 1 << 3
MAC = 1 << 5
GUEST_TSO4 = 1 << 7
GUEST_TSO6 = 1 << 8
GUEST_ECN = 1 << 9
GUEST_UFO = 1 << 10
HOST_TSO4 = 1 << 11
HOST_TSO6 = 1 << 12
HOST_ECN = 1 << 13
HOST_UFO = 1 << 14
MRG_RXBUF = 1 << 15
STATUS = 1 << 16
CTRL_VQ = 1 << 17
GUEST_ANNOUNCE = 1 << 21
MQ = 1 << 22
GUEST_USO4 = 1 << 54
GUEST_USO6 = 1 << 55
HOST_USO = 1 << 56

OFFLOADS = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_UFO | GUEST_USO4 | GUEST_USO6
"""What a driver may switch at run time by CTRL_GUEST_OFFLOADS (§5.1.6.5.7.1)."""

# §5.1.3.1: feature bit requirements. Any one of the alternatives suffices.
_NEEDS = {
    GUEST_TSO4: (GUEST_CSUM,),
    GUEST_TSO6: (GUEST_CSUM,),
    GUEST_ECN: (GUEST_TSO4, GUEST_TSO6),
    GUEST_UFO: (GUEST_CSUM,),
    GUEST_USO4: (GUEST_CSUM,),
    GUEST_USO6: (GUEST_CSUM,),
    HOST_TSO4: (CSUM,),
    HOST_TSO6: (CSUM,),
    HOST_ECN: (HOST_TSO4, HOST_TSO6),
    HOST_UFO: (CSUM,),
    HOST_USO: (CSUM,),
    GUEST_ANNOUNCE: (CTRL_VQ,),
    MQ: (CTRL_VQ,),
    CTRL_GUEST_OFFLOADS: (CTRL_VQ,),
}

# A segmented packet takes this many of a Linux driver's 1.5 KiB buffers, and it keeps half of the ring filled at least.
_SEGMENTS_NEED = 128


@dataclass(frozen=True)
class Offloads:
    """What the user allows the guest and the host's kernel to leave to each other."""

    checksum: bool = True
    tso: bool = True
    ufo: bool = True


ALL_OFFLOADS = Offloads()

_SEGMENTATION_OF_TCP = HOST_TSO4 | HOST_TSO6 | HOST_ECN | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN
_SEGMENTATION_OF_UDP = HOST_UFO | HOST_USO | GUEST_UFO | GUEST_USO4 | GUEST_USO6


def withheld(offloads: Offloads) -> int:
    """The bits that must not be offered. Without checksums there is no segmentation either (§5.1.3.1)."""
    bits = 0 if offloads.tso and offloads.checksum else _SEGMENTATION_OF_TCP
    bits |= 0 if offloads.ufo and offloads.checksum else _SEGMENTATION_OF_UDP
    return bits | (0 if offloads.checksum else CSUM | GUEST_CSUM | CTRL_GUEST_OFFLOADS)


def offered(
    *, pairs: int, queue_size: int, mtu: bool, vnet_hdr: bool, uso: bool, offloads: Offloads = ALL_OFFLOADS
) -> int:
    """The bits to offer. `vnet_hdr`: the back end carries virtio headers; `uso`: it also segments UDP as USO does."""
    bits = MAC | STATUS | MRG_RXBUF | CTRL_VQ | GUEST_ANNOUNCE
    if pairs > 1:
        bits |= MQ
    if mtu:
        bits |= MTU
    if vnet_hdr:
        bits |= CSUM | GUEST_CSUM | CTRL_GUEST_OFFLOADS
        bits |= HOST_TSO4 | HOST_TSO6 | HOST_ECN | HOST_UFO | HOST_USO * uso
        if queue_size >= _SEGMENTS_NEED:
            bits |= GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_UFO | (GUEST_USO4 | GUEST_USO6) * uso
    return bits & ~withheld(offloads)


@lru_cache(64)
def consistent(features: int) -> bool:
    """Whether every bit has what it requires."""
    return all(not features & bit or any(features & need for need in needs) for bit, needs in _NEEDS.items())


@lru_cache(64)
def supported(features: int) -> int:
    """`features` without the bits that lack what they require, so that a driver may accept all that it is offered."""
    while not consistent(features):
        for bit, needs in _NEEDS.items():
            if not any(features & need for need in needs):
                features &= ~bit
    return features


def gso_types(features: int) -> int:
    """Bit n is set if a driver with these features may send packets of gso_type n (§5.1.6: TCPV4 1, UDP 3, TCPV6 4, UDP_L4 5)."""
    pairs = ((HOST_TSO4, 1), (HOST_UFO, 3), (HOST_TSO6, 4), (HOST_USO, 5))
    return sum(1 << gso_type for bit, gso_type in pairs if features & bit)


def tun_offloads(features: int) -> int:
    """The TUN_F_ flags (linux/if_tun.h) of what the guest takes. The kernel knows USO for both IP versions only."""
    if not features & GUEST_CSUM:
        return 0
    pairs = ((GUEST_TSO4, 0x02), (GUEST_TSO6, 0x04), (GUEST_UFO, 0x10))
    flags = 0x01 + sum(flag for bit, flag in pairs if features & bit)
    if features & GUEST_ECN and flags & 0x06:
        flags |= 0x08
    if features & GUEST_USO4 and features & GUEST_USO6:
        flags |= 0x20 | 0x40
    return flags
