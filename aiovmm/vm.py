"""VM: the object that users hold. It owns the machine, the consoles, the tasks and the lifecycle of one guest.

    async with VM(config) as vm:                # kernel examined, memory mapped, devices built
        await vm.start()
        await vm.serial.expect(rb"login: ")
        vm.serial.write(b"root\n")
        status = await vm.wait()                # cancelling wait() does not stop the guest

Leaving the block always tears everything down. What a guest does ends as its `ExitStatus`, never as an exception elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from aiovmm.config import RebootPolicy, VMConfig
from aiovmm.console import Console
from aiovmm.errors import StateError
from aiovmm.events import Subscription
from aiovmm.journal import Journal
from aiovmm.lifecycle import EventKind, ExitReason, ExitStatus, Lifecycle, VMState
from aiovmm.machine import Machine
from aiovmm.machine.power import Power
from aiovmm.machine.watch import PanicWatch
from aiovmm.tasks import finish
from aiovmm.virtqueue.device import VirtioDevice

if TYPE_CHECKING:
    from aiovmm.devices.virtio.vsock import Vsock

__all__ = ["VM"]

_PANIC_LINE = 0.2  # seconds that the line of a panic's message has to end


class VM:
    """One guest. Create it, enter it, start it; every method belongs to the event loop it was entered on.

    `devices` are virtio devices of the embedder's own, plugged into PCI segment 0 beside those of the configuration.
    """

    def __init__(self, config: VMConfig, *, devices: Sequence[VirtioDevice] = ()) -> None:
        self.config = config
        self.name = config.name
        self.serial = Console(history=config.serial.history, name=f"{config.name}.serial")
        """ttyS0 as async streams. Without a serial port in the guest it stays silent."""
        self.console = Console(history=config.console.history, name=f"{config.name}.console")
        """hvc0, the virtio console, likewise."""
        self._embedder_devices = tuple(devices)
        self._life = Lifecycle()
        self._journal = Journal(config.name)
        self._panic = PanicWatch(
            lambda message: self._journal.emit(EventKind.PANICKED, message),
            lambda flush: asyncio.get_running_loop().call_later(_PANIC_LINE, flush),
        )
        self._entered = False
        self._power = Power(self)
        self._transition = asyncio.Lock()  # held by whoever changes between running and paused, or resets
        self._ending: asyncio.Task[None] | None = None
        self._stopped = asyncio.Event()

    # -- being there

    async def __aenter__(self) -> Self:
        """Build everything up to the first instruction. Raises ConfigError, ImageError, HostError, with nothing left behind."""
        if self._entered:
            raise StateError(f"VM {self.name!r} has been entered before; make a new one")
        self._entered = True
        try:
            await self._power.build(self.config, self.serial, self.console, self._panic, self._embedder_devices)
        except BaseException as exc:
            await finish(self._close(_failed("it could not be built", exc)))
            raise
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop the guest if it runs and release everything. Idempotent, and completes even if the caller is cancelled.
        Not for a device's own coroutine, which it would wait for: that may `kill`."""
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
            raise StateError(f"VM {self.name!r} is not there: it is used inside `async with`")
        return self._power.machine

    def device(self, id_: str) -> VirtioDevice:
        """The virtio device with this id. Raises KeyError."""
        return {plugged.id: plugged.device for plugged in self._power.plugged}[id_]

    @property
    def vsock(self) -> Vsock:
        """Streams to and from the guest: `connect(port)`, `listen(port)`. Raises StateError if the VM has no vsock device."""
        from aiovmm.devices.virtio.vsock import VsockDevice

        for plugged in self._power.plugged:
            if isinstance(plugged.device, VsockDevice):
                return plugged.device.streams
        raise StateError(
            f"VM {self.name!r} has no vsock device, or is not there: configure one, use it inside `async with`"
        )

    # -- transitions

    async def start(self) -> None:
        """Let the guest run. Idempotent while it runs. Raises StateError, HostError; on failure the VM is stopped."""
        async with self._transition:
            if self.state is VMState.PAUSED:
                raise StateError(f"VM {self.name!r} is paused: resume() it")
            machine = self.machine
            if self._life.check(VMState.RUNNING):
                try:
                    await self._power.on(machine)
                except BaseException as exc:
                    await finish(self._end(_failed("it could not start", exc)))
                    raise
                self._life.move(VMState.RUNNING)
                self._journal.emit(EventKind.STARTED)

    async def pause(self) -> None:
        """Stop all vCPUs at an instruction boundary; devices finish what they have. Idempotent. Raises StateError.

        It waits for an access that waits for its device. Cancelled, it lets the guest go on.
        """
        async with self._transition:
            if self._life.check(VMState.PAUSED):
                await self.machine.pause()
                self._life.move(VMState.PAUSED)  # raises if the guest has ended meanwhile
                self._journal.emit(EventKind.PAUSED)

    async def resume(self) -> None:
        """Let a paused guest go on. Idempotent. Raises StateError."""
        async with self._transition:
            if self.state is VMState.CREATED:
                raise StateError(f"VM {self.name!r} has not been started: start() it")
            if self._life.check(VMState.RUNNING):
                self.machine.resume()
                self._life.move(VMState.RUNNING)
                self._journal.emit(EventKind.RESUMED)

    def shutdown(self) -> None:
        """Press the ACPI power button; a guest that heeds it powers itself off. Raises StateError if it does not run."""
        if self.state is not VMState.RUNNING:
            raise StateError(f"VM {self.name!r} is {self.state.value}: its power button does nothing")
        self._power.press_button()
        self._journal.emit(EventKind.POWER_BUTTON)

    async def stop(self, timeout: float = 10.0) -> ExitStatus:
        """The ladder: power button, `timeout` seconds of patience, kill. At once if it does not run. Idempotent."""
        if self.state is not VMState.RUNNING:
            return await self.kill(f"it was stopped while {self.state.value}")
        self.shutdown()
        with suppress(TimeoutError):
            return await asyncio.wait_for(self.wait(), timeout)
        return await self.kill(f"it did not power off within {timeout:g} s")

    async def kill(self, detail: str = "by the program") -> ExitStatus:
        """End the guest now, as by pulling the plug. Idempotent: the first reason for the end stays."""
        await finish(self._end(ExitStatus(ExitReason.KILLED, detail)))
        return await self.wait()

    async def wait(self) -> ExitStatus:
        """Wait for the end of the guest. Cancelling it changes nothing."""
        await self._stopped.wait()
        assert self._life.status is not None
        return self._life.status

    def events(self, *, from_start: bool = False) -> Subscription:
        """Events from now on (or from the first that is kept), in order, as an async iterator.

        It ends after EventKind.STOPPED, which is always the last. A subscriber that does not read loses the oldest.
        """
        return self._journal.subscribe(from_start=from_start)

    # -- what the machine tells us (machine.MachineOwner)

    def guest_ended(self, reason: ExitReason, detail: str, error: BaseException | None = None) -> None:
        """The guest powered off, asked for a reset, or cannot go on. Called on the loop, from anywhere in a dispatch."""
        if self._ending is None and self.state is not VMState.STOPPED:
            work = self._after_end(ExitStatus(reason, detail, error))
            self._ending = asyncio.get_running_loop().create_task(work, name=f"{self.name}: end")

    def device_failed(self, device: str, error: BaseException) -> None:
        """A device broke; the guest has been told by NEEDS_RESET where there is such a thing."""
        self._journal.device_error(device, error)

    def create_task(self, coro: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        """A task of this VM, ended with it."""
        return self._power.tasks.create(coro, f"{self.name}: {name}")

    # -- inside

    async def _after_end(self, status: ExitStatus) -> None:
        self._panic.flush()
        panicked = self._panic.seen and status.reason in (ExitReason.REBOOT, ExitReason.SHUTDOWN)
        policy = self.config.on_panic if panicked else self.config.on_reboot
        try:
            if status.reason is ExitReason.REBOOT and policy is RebootPolicy.RESTART:
                await self._reset()
                self._ending = None  # the new guest may end as well
                return
            if panicked:
                status = ExitStatus(ExitReason.PANIC, f"its kernel panicked, then it was {status.detail}")
        except Exception as exc:
            status = _failed("it could not be reset", exc)
        await self._end(status)

    async def _reset(self) -> None:
        async with self._transition:
            if await self._power.reset(self._stopped, lambda: self.state is VMState.PAUSED):
                self._panic.clear()
                self._journal.emit(EventKind.REBOOTED)

    async def _end(self, status: ExitStatus) -> None:
        """Stop the guest and tell everybody; the first status stays. Returns when that is done, whoever does it."""
        if not self._life.end(status):
            await self._stopped.wait()
            return
        try:
            await self._power.off()
        finally:
            self._panic.flush()
            self._stopped.set()
            self.serial.close()
            self.console.close()
            self._journal.end(status)

    async def _close(self, status: ExitStatus) -> None:
        await self._end(status)
        if self._ending is not None:
            await asyncio.wait([self._ending])
        async with self._transition:
            await self._power.aclose()


def _failed(what: str, error: BaseException) -> ExitStatus:
    if isinstance(error, asyncio.CancelledError):
        return ExitStatus(ExitReason.KILLED, f"{what}: its program cancelled it")
    return ExitStatus(ExitReason.ERROR, f"{what}: {error}", error)
