"""The VM that a program holds while its guest is in a worker: consoles, events, state and end are here, the machine is there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Self

from aiovmm.config import ConsoleMode, VMConfig
from aiovmm.errors import ConfigError, PeerError, StateError
from aiovmm.lifecycle import EventKind, ExitReason, ExitStatus, VMState
from aiovmm.pool.workers import process
from aiovmm.pool.workers.plain import WorkerLost, error_of, words
from aiovmm.pool.workers.process import Worker
from aiovmm.pool.workers.remote_changes import RemoteChanges
from aiovmm.pool.workers.remote_input import RemoteInput
from aiovmm.pool.workers.told_config import check_told, place_of
from aiovmm.runtime.awake import awake_timeout
from aiovmm.runtime.plain import Fields, Plain
from aiovmm.runtime.tasks import finish
from aiovmm.snapshot.configuration import to_state
from aiovmm.vm import VM

if TYPE_CHECKING:
    from aiovmm.agent import Agent
    from aiovmm.machine import Machine
    from aiovmm.machine.parts import PluggedDevice
    from aiovmm.snapshot.template import Template

__all__ = ["RemoteVM"]

_HERE = "take the guest from a Pool without workers"
_KINDS = tuple(kind.value for kind in EventKind)


class RemoteVM(RemoteChanges, VM):
    """What it cannot do in a worker it refuses by name (StateError): what needs the machine, or a device, as an object."""

    def __init__(self, config: VMConfig, worker: Worker, number: int) -> None:
        super().__init__(config, terminal=False)
        self._worker = worker
        self._number = number
        self._left_it = False
        self._coming = []
        self._limits_now = config.limits
        self._consoles = {"serial": self._serial, "console": self._console}
        if self._debug is not None:
            self._consoles["debug_console"] = self._debug
        self._inputs: dict[str, RemoteInput] = {}
        worker.guests[number] = self
        for name, console in self._consoles.items():
            self._inputs[name] = self._input_of(name)
            console.connect(self._inputs[name])

    def __repr__(self) -> str:
        return f"<RemoteVM {self.name!r} {self.state.value} in worker {self._worker.index}>"

    @property
    def worker(self) -> int:
        """Which of the pool's workers it is in, from 0."""
        return self._worker.index

    def _input_of(self, name: str) -> RemoteInput:
        def send(data: bytes) -> None:
            self._worker.tell("input", self._number, data, console=name)

        def resized(cols: int, rows: int) -> None:
            self._worker.tell("size", self._number, console=name, cols=cols, rows=rows)

        return RemoteInput(send, resized)

    # -- what the worker says (process.Remote)

    def heard(self, op: str, fields: Fields, data: bytes) -> None:
        """See Remote."""
        if op == "output":
            console = self._consoles[fields.text("console", among=tuple(self._consoles))]
            console.skip(fields.number("lost"))
            console.feed(data)
        elif op == "taken":
            self._inputs[fields.text("console", among=tuple(self._inputs))].taken(fields.number("size"))
        elif op == "event":
            self._happened(fields)
        elif op == "config":
            self._tell_config(fields)
        else:
            raise PeerError(f"{op!r} is nothing that can be heard")

    def _happened(self, fields: Fields) -> None:
        kind = EventKind(fields.text("kind", among=_KINDS))
        error = None if fields.absent("error") else error_of(fields.state("error"))
        device = None if fields.absent("device") else words(fields, "device")
        detail = words(fields, "detail")
        if kind is EventKind.STOPPED:
            raise PeerError("the end is no event among others")
        if not fields.absent("config"):  # it may have let go only now of what it was asked for long ago
            self._tell_config(fields)
        self._journal.emit(kind, detail, device=device, error=error)

    def ended(self, status: ExitStatus) -> None:
        """See Remote."""
        self._ending.ended(status)

    def lost(self, error: WorkerLost) -> None:
        """See Remote."""
        self.ended(ExitStatus(ExitReason.ERROR, error.what, error))

    # -- its life

    async def make(self) -> None:
        """Until it runs, in the worker. Raises what `VM.start` does, WorkerLost."""
        self._home.check()
        made = await self._worker.ask("make", self._number, config=to_state(self._config))
        if self.state is VMState.CREATED:  # else it has ended already
            self._life.move(VMState.RUNNING)
        with self._checked():
            places = Fields(made, "places")
            c = self._config
            configs = {"serial": c.serial, "console": c.console, "debug_console": c.debug_console.console}
            for name, console in self._consoles.items():
                console.place = place_of(configs[name], places.text(name))

    async def leave(self) -> None:
        """There is nothing of it in the worker any more. Completes even if the caller is cancelled."""
        await finish(self._leave())

    async def _leave(self) -> None:
        self._left_it = True
        if self._agent is not None:
            self._agent.close()
        try:
            await self._in_time("leave", "taken apart")
        finally:
            self._worker.guests.pop(self._number, None)
            self.ended(ExitStatus(ExitReason.KILLED, "its program closed it"))

    async def __aenter__(self) -> Self:
        raise StateError(f"VM {self.name!r} has been entered by its pool; take one by `async with pool.acquire()`")

    async def aclose(self) -> None:
        """End the guest; the pool takes it apart when it is given back. Idempotent."""
        await self.kill("its program closed it")

    async def start(self) -> None:
        """It runs already: see VM.start."""
        self._home.check()
        if self.state is VMState.PAUSED:
            raise StateError(f"VM {self.name!r} is paused: resume() it")
        self._life.check(VMState.RUNNING)

    async def pause(self) -> None:
        """See VM.pause."""
        await self._change("pause", VMState.PAUSED)

    async def resume(self) -> None:
        """See VM.resume."""
        await self._change("resume", VMState.RUNNING)

    async def _change(self, op: str, state: VMState) -> None:
        self._home.check()
        async with self._transition:
            if not self._life.check(state):
                return
            request = self._worker.request(op, self._number)

            async def settled() -> None:
                await request.reply
                self._life.move(state)  # raises if the guest has ended meanwhile

            try:
                await finish(settled(), request.cancel)
            except asyncio.CancelledError:
                if op == "pause" and self.state is VMState.PAUSED:  # done just then: the guest goes on all the same
                    self._worker.request("resume", self._number)
                    self._life.move(VMState.RUNNING)
                raise

    def shutdown(self) -> None:
        """See VM.shutdown."""
        self._home.check_thread()
        if self.state is not VMState.RUNNING:
            raise StateError(f"VM {self.name!r} is {self.state.value}: its power button does nothing")
        self._worker.request("shutdown", self._number)

    async def kill(self, detail: str = "by the program") -> ExitStatus:
        """See VM.kill."""
        self._home.check()
        if self.state is not VMState.STOPPED and not self._left_it:
            await finish(self._kill(detail))
        return await self.wait()

    async def _kill(self, detail: str) -> None:
        await self._in_time("kill", "ended", detail=detail)

    async def _in_time(self, op: str, what: str, **fields: Plain) -> None:
        """Ask for some kind of end, which the worker's own is as well."""
        try:
            async with awake_timeout(process.PATIENCE):
                await self._worker.request(op, self._number, **fields).reply
        except TimeoutError:
            self._worker.give_up(f"had not {what} guest {self.name!r} after {process.PATIENCE:g} s")
            await self._worker.over()
        except WorkerLost:
            return

    async def wait(self) -> ExitStatus:
        """See VM.wait."""
        if not self._ending.stopped.is_set():
            self._home.check()
            await self._ending.stopped.wait()
        assert self._life.status is not None
        return self._life.status

    # -- what it cannot

    @property
    def machine(self) -> Machine:
        """Not in a worker."""
        self._refuse("its machine", "ask for what of it there is: stats(every=), memory, config")

    def _plugged(self) -> Sequence[PluggedDevice]:
        self._refuse("its devices as objects", "use add(), remove(), forward() and stats(every=), or " + _HERE)

    def _make_agent(self) -> Agent:
        from aiovmm.agent import Agent  # for who runs something in the guest
        from aiovmm.pool.workers.remote_place import RemotePlace

        self._home.check()
        if self._config.vsock is None:
            raise StateError(f"VM {self.name!r} has no vsock device: say vsock=VsockConfig() in its VMConfig")
        return Agent(RemotePlace(self, self._worker, self._number, self._ending.stopped))

    @classmethod
    def restore(
        cls,
        path: os.PathLike[str] | str,
        *,
        name: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> AbstractAsyncContextManager[Self]:
        """Not in a worker."""
        raise StateError("a worker process makes guests of a configuration: VM.restore() one in this process")

    async def freeze(self) -> Template:
        """Not in a worker."""
        self._refuse("freeze()", "its memory is that process's; take a snapshot(), and VM.restore() it and freeze that")


def check_remote(config: VMConfig) -> None:
    """Raises ConfigError for what is of this process and cannot be in another one."""
    modes = {
        "serial": config.serial.mode,
        "console": config.console.mode,
        "debug_console": config.debug_console.mode,
    }
    for name, mode in modes.items():
        if mode is ConsoleMode.TTY:
            raise ConfigError(name, "a guest in a worker process has no terminal", "say null, and attach() it")
    if any(net.fd for net in config.nets):
        raise ConfigError("net.fd", "a guest in a worker process does not have this one's descriptors", "say tap=")
    check_told(config)
