"""VM: the object that users hold. It owns the machine, the consoles, the tasks and the lifecycle of one guest.

    async with VM(config) as vm:                # kernel examined, memory mapped, devices built
        await vm.start()
        await vm.serial.expect(rb"login: ")
        vm.serial.write(b"root\n")
        status = await vm.wait()                # cancelling wait() does not stop the guest

Leaving the block always tears everything down; a VM that was entered by hand and never left is torn down at the end of its loop,
with a ResourceWarning. What a guest does ends as its `ExitStatus`, never as an exception elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Self, overload

from aiovmm.config import ConsoleConfig, ConsoleMode, LimitsConfig, VMConfig
from aiovmm.console import Console
from aiovmm.errors import ConfigError, HostError, StateError, UsageError
from aiovmm.events import Subscription
from aiovmm.lifecycle import Event, EventKind, ExitReason, ExitStatus, VMState
from aiovmm.machine.changes import Changes
from aiovmm.machine.commands import Commands
from aiovmm.machine.ending import Ending, failed, of_host
from aiovmm.machine.inventory import Inventory
from aiovmm.machine.release import Release
from aiovmm.machine.saving import Saving
from aiovmm.runtime.home import HomeLoop
from aiovmm.runtime.keeper import Keeper
from aiovmm.runtime.tasks import finish
from aiovmm.virtqueue.device import VirtioDevice

if TYPE_CHECKING:
    from aiovmm.agent import Agent
    from aiovmm.devices.port import PortDevice
    from aiovmm.machine import Machine
    from aiovmm.machine.own import OwnDevices
    from aiovmm.machine.parts import PluggedDevice
    from aiovmm.machine.ram import Ram
    from aiovmm.stats import VMStats

__all__ = ["VM"]


class VM(Inventory, Changes, Saving, Commands):
    """One guest. Create it, enter it, start it; every method belongs to the event loop it was entered on (StateError elsewhere).

    `devices` are virtio devices of the embedder's own, plugged into PCI segment 0 beside those of the configuration; `ports` are
    devices at ports or addresses, of any kind.
    `terminal`: whether a console with ConsoleMode.TTY is joined to standard input and output, as all other places are, while
    the VM is entered; the program may rather do that itself, by `attach`.
    """

    def __init__(
        self,
        config: VMConfig,
        *,
        devices: Sequence[VirtioDevice] = (),
        ports: Sequence[PortDevice] = (),
        terminal: bool = True,
    ) -> None:
        if not isinstance(config, VMConfig):
            raise ConfigError("config", f"{config!r} is no VMConfig", "VM(VMConfig(PayloadConfig(kernel)))")
        modes = [config.serial.mode, config.console.mode, config.debug_console.mode]
        if terminal and modes.count(ConsoleMode.TTY) > 1:
            raise ConfigError("console", "serial and console cannot both have the terminal", "set one of them to null")
        self._config = config
        self._home = HomeLoop(f"VM {config.name!r}")
        self._serial = self._make_console("serial", config.serial)
        self._console = self._make_console("console", config.console)
        self._debug: Console | None = None
        if config.debug_console.mode is not ConsoleMode.OFF:
            self._debug = self._make_console("debug_console", config.debug_console.console)
        self._terminal = terminal
        self._own = _checked(devices, ports) if devices or ports else None
        consoles = (self._serial, self._console, *([self._debug] if self._debug is not None else []))
        self._ending = Ending(config, self._home, consoles)
        self._life, self._journal, self._power = self._ending.life, self._ending.journal, self._ending.power
        if self._debug is not None:
            self._power.debug_output = self._debug.feed
        self._transition = self._ending.transition
        self._release = Release(config.name, self._ending)
        self._keeper: Keeper | None = None  # once it was entered

    def __repr__(self) -> str:
        return f"<VM {self.name!r} {self.state.value}>"

    @property
    def name(self) -> str:
        """The name in events, logs and errors."""
        return self._config.name

    @property
    def config(self) -> VMConfig:
        """What it is made of, with what was added and without what was removed."""
        return self._config

    @property
    def serial(self) -> Console:
        """The serial port (ttyS0 on a PC) as async streams. Where the guest has none (ConsoleMode.OFF) reads and writes raise
        StateError."""
        return self._serial

    @property
    def console(self) -> Console:
        """hvc0, the virtio console, likewise. A VMConfig has none unless it is given one."""
        return self._console

    @property
    def debug_console(self) -> Console:
        """What the guest writes to the debug console's port; nothing can be typed there. Raises StateError if it has none."""
        if self._debug is None:
            hint = "say debug_console=DebugConsoleConfig(ConsoleMode.NULL) in its VMConfig"
            raise StateError(f"VM {self.name!r} has no debug console: {hint}")
        return self._debug

    def _make_console(self, option: str, config: ConsoleConfig) -> Console:
        absent = ""
        if config.mode is ConsoleMode.OFF:
            absent = f"VM {self.name!r} has no {option}: say {option}=ConsoleConfig() in its VMConfig"
        return Console(history=config.history, name=f"{self.name}.{option}", home=self._home, absent=absent)

    # -- being there

    async def __aenter__(self) -> Self:
        """Build everything up to the first instruction. Raises ConfigError, ImageError, HostError, with nothing left behind."""
        self._home.check()
        if self._keeper is not None:
            raise StateError(f"VM {self.name!r} has been entered before; make a new one")
        release = self._release
        self._keeper = Keeper(self, f"VM {self.name!r}", release.left_behind, release.abandon)
        try:
            c = self._config
            memory = c.memory
            if c.cpus.affinity or c.nets or c.disks or memory.hotplug_size or memory.thp or memory.mergeable or c.numa:
                from aiovmm.config.remarks import remarks  # for who has what may be remarked on

                for remark in remarks(c):
                    self._journal.remark(remark)
            await self._power.build(
                self._ending, self._config, self._serial, self._console, self._ending.panic, self._own
            )
            await self._join_consoles()
            if self._power.restored is not None:
                await self._stand()
        except BaseException as exc:
            error = of_host("building", self.name, exc)
            try:
                await finish(self._close(failed("it could not be built", error)))
                if error is exc:
                    raise
                raise error from exc
            finally:  # its traceback knows this frame: what was built would stay until the next collection
                del error
        return self

    async def _stand(self) -> None:
        """Be paused where a snapshot was taken."""
        await self._power.on(self.machine, paused=True)
        assert self._keeper is not None, "it is entered"
        self._release.watch_soon(self._keeper.loop_closed)
        self._life.stand()
        self._journal.emit(EventKind.RESTORED)

    async def _join_consoles(self) -> None:
        config = self._config
        consoles = [("serial", self._serial, config.serial), ("console", self._console, config.console)]
        if self._debug is not None:
            consoles.append(("debug_console", self._debug, config.debug_console.console))
        for id_, console, place in consoles:
            joined = place.mode is not ConsoleMode.TTY or self._terminal
            if joined and place.mode not in (ConsoleMode.OFF, ConsoleMode.NULL):
                from aiovmm.console.places import Places

                places = self._release.places = self._release.places or Places(self._ending.device_failed)
                await places.join(id_, console, place)

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop the guest if it runs and release everything. Idempotent, and completes even if the caller is cancelled.
        Not for a device's own coroutine, which it would wait for: that may `kill`."""
        self._home.check()
        await finish(self._close(ExitStatus(ExitReason.KILLED, "its program closed it")))

    @property
    def state(self) -> VMState:
        """Where the VM is in its life."""
        return self._life.state

    @property
    def status(self) -> ExitStatus | None:
        """How it ended, from the moment that `state` is STOPPED; None before. `wait` returns once all has come to rest."""
        return self._life.status

    @property
    def machine(self) -> Machine:
        """The machine as it is built now; a reboot builds a new one. Raises StateError outside `async with`."""
        if self._power.machine is None:
            raise StateError(self._not_there())
        return self._power.machine

    def _not_there(self) -> str:
        if self.status is None and self._power.power_ons and self._power.parts is not None:
            return f"VM {self.name!r} is being reset: it has no machine for a moment; try again"
        ended = f" has ended ({self.status.reason.value}: {self.status.detail})" if self.status else ""
        return f"VM {self.name!r}{ended or ' is not there'}: it is used inside `async with`"

    def _make_agent(self) -> Agent:
        from aiovmm.agent import Agent  # for who runs something in the guest
        from aiovmm.agent.guest_place import GuestPlace

        self._home.check()
        return Agent(GuestPlace(self, self._ending.stopped), renews=self._power.restored is not None)

    def _plugged(self) -> Sequence[PluggedDevice]:
        self._home.check_thread()
        if self._power.parts is None:
            raise StateError(self._not_there())
        return self._power.plugged

    # -- transitions

    async def start(self) -> None:
        """Let the guest run. Idempotent while it runs. Raises StateError, HostError; on failure the VM is stopped."""
        self._home.check()
        async with self._transition:
            if self.state is VMState.PAUSED:
                raise StateError(f"VM {self.name!r} is paused: resume() it")
            machine = self.machine
            if self._life.check(VMState.RUNNING):
                try:
                    await self._power.on(machine)
                    assert self._keeper is not None, "there is a machine"
                    self._release.watch_soon(self._keeper.loop_closed)
                except BaseException as exc:
                    error = of_host("starting", self.name, exc)
                    await finish(self._ending.end(failed("it could not start", error)))
                    if error is exc:
                        raise
                    raise error from exc
                self._life.move(VMState.RUNNING)
                self._journal.emit(EventKind.STARTED)
                if self.limits != LimitsConfig():
                    self.set_limits()

    async def pause(self) -> None:
        """Stop all vCPUs at an instruction boundary; devices finish what they have. Idempotent. Raises StateError.

        It waits for an access that waits for its device. Cancelled, it lets the guest go on.
        """
        self._home.check()
        async with self._transition:
            if self.state is VMState.CREATED:
                raise StateError(f"VM {self.name!r} has not been started: start() it")
            if self._life.check(VMState.PAUSED):
                await self.machine.processors.pause()
                self._life.move(VMState.PAUSED)  # raises if the guest has ended meanwhile
                self._journal.emit(EventKind.PAUSED)

    async def resume(self) -> None:
        """Let a paused guest go on. Idempotent. Raises StateError, and HostError if it has not run yet, for it comes from a
        snapshot, and the host has no threads for it: the VM is stopped then."""
        self._home.check()
        async with self._transition:
            if self.state is VMState.CREATED:
                raise StateError(f"VM {self.name!r} has not been started: start() it")
            if self._life.check(VMState.RUNNING):
                try:
                    self.machine.processors.resume()
                except HostError as exc:
                    await finish(self._ending.end(failed("it could not go on", exc)))
                    raise
                self._life.move(VMState.RUNNING)
                self._journal.emit(EventKind.RESUMED)
                if self._limits is None and self._config.limits != LimitsConfig():  # it came from a snapshot
                    self.set_limits()

    def shutdown(self) -> None:
        """Press the power button; a guest that heeds it powers itself off. Raises StateError if it does not run."""
        self._home.check_thread()
        if self.state is not VMState.RUNNING:
            raise StateError(f"VM {self.name!r} is {self.state.value}: its power button does nothing")
        self._power.press_button()
        self._journal.emit(EventKind.POWER_BUTTON)

    async def stop(self, timeout: float | None = 10.0) -> ExitStatus:
        """The ladder: power button, and the agent if it is known, `timeout` seconds of patience (None: for ever), kill. At once
        if it does not run. Idempotent."""
        from aiovmm.runtime.awake import awake_timeout
        from aiovmm.runtime.timeouts import check_seconds

        check_seconds(timeout, "stop(timeout=)")
        self._home.check()
        if self.state is not VMState.RUNNING:
            return await self.kill(f"it was stopped while {self.state.value}")
        self.shutdown()
        with suppress(TimeoutError):
            async with awake_timeout(timeout):
                await self._ask_agent_to_end()
                return await self.wait()
        return await self.kill(f"it did not power off within {timeout:g} s")

    async def kill(self, detail: str = "by the program") -> ExitStatus:
        """End the guest now, as by pulling the plug. Idempotent: the first reason for the end stays."""
        self._home.check()
        if not isinstance(detail, str):
            raise UsageError(f"kill(detail={detail!r}) is not text")
        await finish(self._ending.end(ExitStatus(ExitReason.KILLED, detail)))
        return await self.wait()

    async def wait(self) -> ExitStatus:
        """Wait for the end of the guest. Cancelling it changes nothing. Raises StateError if the VM was never entered."""
        if not self._ending.stopped.is_set():
            self._home.check()
            if self._keeper is None:
                raise StateError(
                    f"VM {self.name!r} was never entered: nothing would end it; use it inside `async with`"
                )
            await self._ending.stopped.wait()
        assert self._life.status is not None
        return self._life.status

    def events(self, *, from_start: bool = False) -> Subscription[Event]:
        """Events from now on (or from the first that is kept), in order, as an async iterator.

        It ends after EventKind.STOPPED, which is always the last. A subscriber that does not read loses the oldest.
        """
        self._home.check_thread()
        return self._journal.subscribe(from_start=from_start)

    # -- what it does

    @property
    def memory(self) -> Ram:
        """The guest's RAM as the host sees it: `await vm.memory.resident()`, `own()`, `reclaim()`."""
        from aiovmm.machine.ram import Ram  # for who asks

        return Ram(self.name, lambda: self.machine.memory)

    @overload
    def stats(self) -> VMStats: ...
    @overload
    def stats(self, *, every: float) -> AsyncIterator[VMStats]: ...
    def stats(self, *, every: float | None = None) -> VMStats | AsyncIterator[VMStats]:
        """What it has done until now: exits, requests, interrupts, bytes, errors, and how late the event loop is. With `every`
        an iterator, `async for now in vm.stats(every=1.0)`, which ends with the VM. Raises UsageError for what is no time."""
        from aiovmm.stats import gather  # for who asks

        self._home.check_thread()
        if every is not None:
            return self._stats_every(every)
        power = self._power
        consoles = {"serial": self._serial, "console": self._console}
        return gather(self._config, self.state, power.uptime, power.power_ons, power.machine, power.plugged, consoles)

    async def _stats_every(self, seconds: float) -> AsyncIterator[VMStats]:
        from aiovmm.runtime.timeouts import check_seconds

        check_seconds(seconds, "stats(every=)")
        while not self._ending.stopped.is_set():
            yield self.stats()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.stopped.wait(), seconds)
        yield self.stats()

    async def _close(self, status: ExitStatus) -> None:
        if self._agent is not None:
            self._agent.close()
        try:
            await self._release.close(status)
        except asyncio.CancelledError:  # by the end of the loop: the keeper does the rest
            raise
        except BaseException:
            await self._left()
            raise
        await self._left()

    async def _left(self) -> None:
        if self._keeper is not None:
            await self._keeper.left()


def _checked(devices: Sequence[VirtioDevice], ports: Sequence[PortDevice]) -> OwnDevices:
    from aiovmm.devices.port import check_ports  # for programs that bring some
    from aiovmm.machine.own import OwnDevices, check_devices

    return OwnDevices(check_devices(devices), check_ports(ports))
