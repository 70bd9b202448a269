"""One queue pair's way to the host: a descriptor that carries frames, with the native state of both directions."""

from __future__ import annotations

import enum
from typing import Any

from aiovmm.devices.virtio.net import features as f
from aiovmm.devices.virtio.net.counters import NetCounters
from aiovmm.native import ffi, lib, owners
from aiovmm.native.mapping import Mapping

__all__ = ["Port", "PortKind"]

_DRAIN = 1024  # packets thrown away at most when a driver starts; a TAP's queue has 1000 by default


class PortKind(enum.IntEnum):
    """How frames travel on the descriptor (native/src/tap.h)."""

    VNET = lib.AVMM_NET_VNET
    PLAIN = lib.AVMM_NET_PLAIN
    STREAM = lib.AVMM_NET_STREAM


class Port:
    """`fd` stays its owner's; no call waits on it, non-blocking or not. `zero_ends`: reading nothing means that the peer has
    closed."""

    def __init__(self, fd: int, kind: PortKind, *, socket: bool = False, zero_ends: bool = False) -> None:
        self.fd = fd
        self.kind = kind
        self.ended: OSError | None = None  # the other end is gone for good, and why
        self.rx: Any = ffi.new("struct avmm_net_rx *")
        self.tx: Any = ffi.new("struct avmm_net_tx *")
        self.rx.fd = self.tx.fd = fd
        self.rx.kind = self.tx.kind = kind
        self.rx.zero_ends = zero_ends
        self.rx.socket = self.tx.socket = socket
        sizes = [lib.AVMM_NET_PACKET + 1] * 2 + [lib.AVMM_NET_STREAM_BUFFER] * (kind is PortKind.STREAM)
        # Mapped, not allocated: most ports never touch their buffers, and there may be a thousand guests.
        buffers = [owners.view(Mapping(-1, size)) for size in sizes]
        owners.link(self.rx, packet=buffers[0])
        owners.link(self.tx, packet=buffers[1])
        if kind is PortKind.STREAM:
            owners.link(self.rx, stream=buffers[2])

    def begin(self, features: int, *, fresh: bool = True) -> None:
        """A driver starts with these features, or goes on with them if it is not `fresh`. For a fresh one packets that
        waited for none are lost, as on a card that is off: they may have been prepared for offloads that this driver does
        not know."""
        self.rx.mergeable = bool(features & f.MRG_RXBUF)
        if fresh:
            self.rx.pending = 0
        self.tx.checksum = bool(features & f.CSUM)
        self.tx.gso = f.gso_types(features)
        self.tx.ecn = bool(features & f.HOST_ECN)
        if fresh and self.kind is PortKind.VNET and self.ended is None:
            self.rx.dropped += lib.avmm_net_drain(self.rx, _DRAIN)

    def set_offloads(self, features: int) -> None:
        """What the driver takes now, as feature bits."""
        self.rx.checked = bool(features & f.GUEST_CSUM)

    def send_only_from(self, own: Any) -> None:
        """What comes from elsewhere than `struct avmm_net_own *` is not sent, and counts as an error."""
        owners.link(self.tx, own=own)

    def set_link(self, up: bool) -> None:
        """While the link is down frames of both directions are lost."""
        self.rx.discard = self.tx.discard = not up

    @property
    def counters(self) -> NetCounters:
        """What went through."""
        rx, tx = self.rx, self.tx
        return NetCounters(rx.packets, rx.bytes, rx.dropped, tx.packets, tx.bytes, tx.dropped, tx.errors)
