"""The host's side of a network device: what a back end gives and takes."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence

from aiovmm.devices.virtio.net.port import Port

__all__ = ["NetBackend"]


class NetBackend(abc.ABC):
    """One network interface of the host, or a peer, with a port for each queue pair.

    The attributes that depend on the host hold a guess until `open` and the truth after it.
    """

    pairs: int = 1
    vnet_hdr: bool = False
    """Frames carry virtio headers, so that checksums and segmentation can be left to the other side."""
    uso: bool = False
    """UDP segmentation offload as well (Linux 6.2)."""
    mtu: int | None = None
    """Bytes of the largest IP packet, None where nobody knows."""

    on_error: Callable[[Exception], None] = staticmethod(lambda error: None)
    """Given by the device: hears of what goes wrong behind it while it is open."""

    @abc.abstractmethod
    async def open(self) -> None:
        """Acquire what the ports need. Idempotent. Raises HostError, ConfigError."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Release it. Idempotent; no descriptor is watched any more."""

    @property
    @abc.abstractmethod
    def ports(self) -> Sequence[Port]:
        """One for each pair, once it is open; the first ones are the active ones."""

    def set_offloads(self, features: int) -> None:
        """What the driver takes from now on, as GUEST_ feature bits. Raises OSError."""
        return

    async def activate(self, pairs: int) -> None:
        """Frames go to the first `pairs` ports alone. Each that this changes has a turn of the loop. Raises OSError."""
        return

    def set_carrier(self, up: bool) -> None:
        """Show the other side whether the link is up, where that is possible."""
        return
