"""The places that a VM's consoles are joined to by its configuration, from when it is entered until it is closed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from aiovmm.config import ConsoleConfig, ConsoleMode
from aiovmm.console.stream import Console
from aiovmm.runtime.tasks import bury

if TYPE_CHECKING:
    from aiovmm.console.backends import ConsoleBackend

__all__ = ["Places"]

_NOWHERE = (ConsoleMode.OFF, ConsoleMode.NULL)


class Places:
    """`on_error(id, exc)` hears of a place that fails while the guest runs (a full disk), which holds up nobody."""

    def __init__(self, on_error: Callable[[str, Exception], None]) -> None:
        self._on_error = on_error
        self._joined: list[tuple[str, Console, ConsoleBackend, asyncio.Task[None]]] = []

    async def join(self, id_: str, console: Console, config: ConsoleConfig) -> None:
        """Open the place that `config` names, if it names one, and say at `console.place` where it is. Raises ConfigError,
        HostError."""
        if config.mode in _NOWHERE:
            return
        from aiovmm.console.backends import open_backend

        backend = open_backend(config, console)
        await backend.open()
        console.place = backend.place
        watch = asyncio.create_task(self._watch(id_, console, backend), name=f"{console.name} at {backend.place}")
        self._joined.append((id_, console, backend, watch))

    async def leave(self, id_: str) -> None:
        """The place of that console, if it has one: let what was printed go out, for a bounded time, and let go."""
        for place in [place for place in self._joined if place[0] == id_]:
            self._joined.remove(place)
            await self._let_go(*place[1:])

    async def aclose(self) -> None:
        """All of them. Idempotent."""
        while self._joined:
            await self._let_go(*self._joined.pop()[1:])

    async def _let_go(self, console: Console, backend: ConsoleBackend, watch: asyncio.Task[None]) -> None:
        try:
            await backend.aclose()
        finally:
            if all(joined is not console for _, joined, *_ in self._joined):  # to another place meanwhile
                console.place = ""
            if not bury(watch):
                await asyncio.wait([watch])

    async def _watch(self, id_: str, console: Console, backend: ConsoleBackend) -> None:
        try:
            await backend.wait()
        except Exception as exc:
            console.place_error = exc
            self._on_error(id_, exc)
