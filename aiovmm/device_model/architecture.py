"""The rows of an architecture's own devices. Nobody else here asks for a room."""

from __future__ import annotations

from typing import Protocol, cast

from aiovmm import architecture
from aiovmm.architecture import Architecture
from aiovmm.device_model.row import DeviceRow

__all__ = ["Room", "room_of"]


class Room(Protocol):
    """What a room has to say."""

    def board_rows(self) -> tuple[DeviceRow, ...]:
        """The devices that are not on PCI, in the order of the reference document."""


def room_of(of: Architecture) -> Room:
    """The one for guests of `of`."""
    if of is architecture.X86_64:
        from aiovmm.device_model import x86_64

        return cast(Room, x86_64)
    from aiovmm.device_model import aarch64

    return cast(Room, aarch64)
