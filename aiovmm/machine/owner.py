"""Whom a machine works for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

from aiovmm.lifecycle import ExitReason

__all__ = ["MachineOwner"]


class MachineOwner(Protocol):
    """What a machine tells its VM. All calls are made on the event loop, and none may raise."""

    def guest_ended(self, reason: ExitReason, detail: str, error: BaseException | None = None) -> None:
        """The guest powered off, asked for a reset, or cannot go on. May be called more than once."""

    def device_failed(self, device: str, error: BaseException) -> None:
        """A device broke; the machine goes on."""

    def device_driven(self, device: str, there: bool) -> None:
        """The guest's driver has taken a virtio device over, or let go of it."""

    def guest_panicked(self, message: str, *, goes_on: bool = False) -> None:
        """Its kernel says that it has panicked; `goes_on`: and that another one takes over."""

    def guest_silent(self, *, resets: bool) -> None:
        """It has not pinged its watchdog; `resets`: and is to be reset for it."""

    @property
    def guest_runs(self) -> bool:
        """Whether it has been started, and is neither paused nor at its end."""

    def create_task(self, coro: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        """A task that ends with the VM."""
