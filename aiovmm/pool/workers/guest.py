"""One guest of a worker: the VM, and all of it that is told to the pool."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from typing import Any

from aiovmm.config import ConsoleMode, VMConfig
from aiovmm.console import Console
from aiovmm.errors import ConsoleEnded, StateError
from aiovmm.lifecycle import EventKind
from aiovmm.pool.workers.answers import ANSWERS, seconds_of
from aiovmm.pool.workers.confined import Confined
from aiovmm.pool.workers.connection import Connection
from aiovmm.pool.workers.frames import MOST_DATA
from aiovmm.pool.workers.plain import error_to_state, short, status_to_state
from aiovmm.runtime.plain import Fields, Plain
from aiovmm.runtime.tasks import in_thread
from aiovmm.snapshot.configuration import device_from_state, to_state
from aiovmm.vm import VM

__all__ = ["Guest"]

_CHANGES = (EventKind.DEVICE_ADDED, EventKind.DEVICE_REMOVED, EventKind.RESIZED)
"""Its configuration is another by then, whoever asked for that, and when."""


class Guest:
    """`make`, then any number of requests, then `leave`."""

    def __init__(self, number: int, config: VMConfig, connection: Connection, confined: Confined | None = None) -> None:
        self._vm = VM(config, terminal=False)
        self._number = number
        self._connection = connection
        self._confined = confined
        self._consoles = {"serial": self._vm.serial, "console": self._vm.console}
        self._typed: dict[str, asyncio.Queue[bytes]] = {}
        modes = {"serial": config.serial.mode, "console": config.console.mode}
        if config.debug_console.mode is not ConsoleMode.OFF:
            self._consoles["debug_console"] = self._vm.debug_console
        self._there = {name: c for name, c in self._consoles.items() if modes.get(name) is not ConsoleMode.OFF}
        self._typists: list[asyncio.Task[None]] = []
        self._life: asyncio.Task[None] | None = None
        self._made: asyncio.Future[None] | None = None
        self._leaving = asyncio.Event()

    # -- its life

    async def make(self) -> Plain:
        """Until it runs; then where its consoles are. Raises what VM does, with nothing left behind."""
        if self._leaving.is_set():
            raise StateError("it was not wanted any more")
        self._made = asyncio.get_running_loop().create_future()
        self._life = asyncio.get_running_loop().create_task(self._live(self._made), name=f"guest {self._vm.name}")
        try:
            await asyncio.shield(self._made)
        except asyncio.CancelledError:
            self._life.cancel()
            await asyncio.wait([self._life])
            if not self._made.cancelled():
                self._made.exception()  # seen: nobody wants it any more
            raise
        return {name: console.place for name, console in self._consoles.items()}

    async def _live(self, made: asyncio.Future[None]) -> None:
        told: asyncio.Task[None] | None = None
        try:
            async with self._vm as vm:
                told = asyncio.create_task(self._tell_all(vm), name=f"guest {vm.name}: told")
                await vm.start()
                made.set_result(None)
                await self._leaving.wait()
        except BaseException as exc:
            if made.done():
                raise
            if isinstance(exc, asyncio.CancelledError):
                made.cancel()
            else:
                made.set_exception(exc)
        finally:
            for task in self._typists:
                task.cancel()
            if told is not None:
                await asyncio.wait([told])  # it ends with the VM

    async def leave(self) -> None:
        """Nothing is left of it, and all of it was told. Raises what went wrong."""
        self._leaving.set()
        if self._life is not None:
            await asyncio.wait([self._life])
            if not self._life.cancelled() and (error := self._life.exception()) is not None:
                raise error

    # -- what is told of it

    async def _tell_all(self, vm: VM) -> None:
        tasks = [self._tell_output(name, console) for name, console in self._there.items()]
        await asyncio.gather(self._tell_events(vm), *tasks)
        self._send("ended", status=status_to_state(await vm.wait()))

    async def _tell_output(self, name: str, console: Console) -> None:
        reader = console.reader()
        lost = 0
        while data := await reader.read(MOST_DATA):
            self._send("output", data, console=name, lost=reader.lost - lost)
            lost = reader.lost
            await self._connection.drain()  # a pool that does not read loses output, as any slow reader

    async def _tell_events(self, vm: VM) -> None:
        async for event in vm.events(from_start=True):
            if event.kind is not EventKind.STOPPED:
                error = error_to_state(event.error) if event.error is not None else None
                told = {"kind": event.kind.value, "detail": short(event.detail), "device": event.device, "error": error}
                self._send("event", **told, config=to_state(vm.config) if event.kind in _CHANGES else None)
                await self._connection.drain()

    def _send(self, op: str, data: bytes = b"", **fields: Plain) -> None:
        self._connection.send({"op": op, "vm": self._number, **fields}, data)

    # -- what is typed to it

    def heard(self, op: str, fields: Fields, data: bytes) -> None:
        """Input, or a terminal's size. Raises SnapshotError for what is none of the pool's."""
        name = fields.text("console", among=tuple(self._consoles))
        if op == "size":
            self._consoles[name].resize(fields.number("cols", 0, 65535), fields.number("rows", 0, 65535))
            return
        if name not in self._typed:
            self._typed[name] = asyncio.Queue()  # no larger than the window of who sends
            self._typists.append(asyncio.get_running_loop().create_task(self._type(name), name=f"typing to {name}"))
        self._typed[name].put_nowait(data)

    async def _type(self, name: str) -> None:
        while True:
            data = await self._typed[name].get()
            try:
                await self._consoles[name].send(data)
            except (ConsoleEnded, StateError):
                return
            self._send("taken", console=name, size=len(data))

    # -- what it is asked

    def answer(self, fields: Fields) -> Coroutine[Any, Any, Plain]:
        """The coroutine of a request. Raises SnapshotError for one that there is not."""
        op = fields.text("op", among=(*ANSWERS, "add"))
        return self._add(fields) if op == "add" else ANSWERS[op](self._vm, fields)

    async def _add(self, fields: Fields) -> Plain:
        device = device_from_state(fields.text("kind"), fields.state("device"))
        if self._confined is not None:
            await in_thread(f"{self._vm.name}: look at a device", self._confined.check, self._vm.config, device)
        try:
            id_ = await self._vm.add(device, timeout=seconds_of(fields))
        except BaseException:  # others may have been told of it meanwhile
            if not self._leaving.is_set():  # after that the pool knows no such guest
                self._send("config", config=to_state(self._vm.config))
            raise
        return {"id": id_, "config": to_state(self._vm.config)}

    async def dial(self, port: int, sock: socket.socket) -> None:
        """Join the guest's port to `sock`, whose other half the pool has. Raises what `vm.vsock.connect` does."""
        await self._vm.vsock.join(port, socket.socket(fileno=sock.detach()))
