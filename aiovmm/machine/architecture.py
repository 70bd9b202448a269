"""The parts of a machine on this host's architecture. Nobody else here asks for a room."""

from __future__ import annotations

from aiovmm import architecture
from aiovmm.machine.board import Board

__all__ = ["board_of_host"]


def board_of_host() -> type[Board]:
    """The class of boards that run here. Raises HostError where none do."""
    match architecture.host():
        case architecture.X86_64:
            from aiovmm.machine.x86_64.board import Pc

            return Pc
        case _:  # there are two
            from aiovmm.machine.aarch64.board import Virt

            return Virt
