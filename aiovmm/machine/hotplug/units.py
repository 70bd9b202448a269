"""Having a guest take one unit, or let go of it: a processor, or a memory module. The shell around devices.hotplug.units."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from aiovmm.devices.hotplug.units import UnitRegisters
from aiovmm.errors import HotplugError, HotplugTimeout
from aiovmm.machine.hotplug.waiting import wait_for_guest

if TYPE_CHECKING:
    from aiovmm.machine.ending import Ending

__all__ = ["Units"]

_LATER = "it stays asked: a guest that lets go of it later is heeded"


class Units:
    """Of one machine. `tell` has the guest look at the registers; `away(unit)` is called when it has let go of one, and its
    instruction waits for that."""

    def __init__(
        self,
        ending: Ending,
        registers: UnitRegisters,
        tell: Callable[[], None],
        away: Callable[[int], Awaitable[None]],
        what: str,
    ) -> None:
        self.registers = registers
        self._ending = ending
        self._tell = tell
        self._away = away
        self._what = what  # what one is called
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        registers.on_taken = self._settled
        registers.on_refused = lambda unit: self._failed(unit, "the guest does not take it")
        registers.on_kept = lambda unit: self._failed(
            unit, "the guest does not let go of it: it is in use, or the only one"
        )
        registers.on_eject = self._ejected
        registers.on_again = lambda _unit: tell()

    async def bring(self, unit: int, timeout: float | None) -> None:
        """Until the guest has taken it. Raises HotplugError, StateError; then it is not there."""
        future = self._wait(unit)
        self.registers.insert(unit)
        self._tell()
        try:
            hint = "does the guest run, and has its kernel ACPI hotplug?"
            await wait_for_guest(
                self._ending, future, timeout, f"adding {self._what} {unit}", "the guest has not taken it", hint
            )
        except BaseException:
            self.registers.withdraw(unit)
            raise
        finally:
            self._forget(unit)

    async def take(self, unit: int, timeout: float | None) -> None:
        """Until the guest has let go of it, and it is away. Raises HotplugError, StateError; then it stays."""
        future = self._wait(unit)
        self.registers.ask(unit)
        self._tell()
        try:
            what = f"removing {self._what} {unit}"
            await wait_for_guest(self._ending, future, timeout, what, "the guest has not let go of it", _LATER)
        except HotplugTimeout:
            await self.settled()  # or it has, and the rest is the host's to do
            if not future.done():
                raise
        finally:
            self._forget(unit)

    def keep(self, unit: int) -> None:
        """The guest need not let go of it any more."""
        self.registers.keep(unit)

    async def settled(self) -> None:
        """Wait until what the guest has let go of is away."""
        if self._leaving:
            await asyncio.wait(self._leaving)

    def machine_goes(self) -> None:
        """The guest is reset, or ends: nobody answers any more."""
        for unit in list(self._waiting):
            self._failed(unit, "the guest was reset meanwhile")

    def _wait(self, unit: int) -> asyncio.Future[None]:
        return self._waiting.setdefault(unit, asyncio.get_running_loop().create_future())

    def _forget(self, unit: int) -> None:
        future = self._waiting.pop(unit, None)
        if future is not None and future.done() and not future.cancelled():
            future.exception()  # seen: whoever waited was told of something else

    def _settled(self, unit: int) -> None:
        if (future := self._waiting.get(unit)) is not None and not future.done():
            future.set_result(None)

    def _failed(self, unit: int, reason: str) -> None:
        if (future := self._waiting.get(unit)) is not None and not future.done():
            future.set_exception(HotplugError(f"{self._what} {unit}", reason))

    def _ejected(self, unit: int) -> Awaitable[None]:
        """The guest's instruction goes on when it is away; one that is the ejected processor's own does not."""
        task = self._ending.power.tasks.create(self._take_away(unit), f"eject {self._what} {unit}")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        return asyncio.shield(task)

    async def _take_away(self, unit: int) -> None:
        await self._away(unit)
        self._settled(unit)
