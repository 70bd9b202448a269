"""One `aiovmm run`: the VM, the terminal, the signals, and the exit code."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import gc
import os
import signal
import stat
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from aiovmm.cli.confinement import Confinement
from aiovmm.cli.messages import say
from aiovmm.config import ConsoleConfig, ConsoleMode, VMConfig
from aiovmm.console import Console, parse_keys
from aiovmm.errors import ConfigError, HostError
from aiovmm.lifecycle import ExitStatus
from aiovmm.runtime.stdio import heed
from aiovmm.vm import VM

if TYPE_CHECKING:
    from pathlib import Path
    from socket import socket

    from aiovmm.cli.event_monitor import EventMonitor
    from aiovmm.cli.restore import Restore
    from aiovmm.console import AttachEnd

__all__ = ["Session"]

_KEEP = "--serial file=PATH keeps it"


class Session:
    """Runs one VM in the foreground. SIGTERM and SIGINT stop it (power button, then kill), a second one kills it."""

    def __init__(
        self,
        config: VMConfig,
        *,
        detach_keys: str,
        stop_timeout: float,
        events_to: str | None,
        monitor: str | None = None,
        stays: bool = False,
        closed: Sequence[int] = (),
        confinement: Confinement,
        restore: Restore | None = None,
        control: Path | None = None,
    ) -> None:
        """`events_to`: see events.open_events, `monitor`: see event_monitor; `stays`: not to end with a guest that has powered
        off; `closed`: standard descriptors that are not there; `confinement`: of this process; `restore`: what the guest goes on
        from, `config` being its own; `control`: a socket for those who ask for something (control.py)."""
        self._config = config
        self._detach = parse_keys(detach_keys)
        self._stop_timeout = stop_timeout
        self._events_to = events_to
        self._monitor_to = monitor
        self._monitor: EventMonitor | None = None
        self._stays = stays
        self._closed = closed
        self._confinement = confinement
        self._restore = restore
        self._control = control
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self._output_lost = False
        self._building: asyncio.Task[Any] | None = None  # that makes the guest, until it is there
        self._leave = asyncio.Event()

    async def run(self) -> int:
        """Run the guest to its end; the exit code."""
        if self._monitor_to is not None:
            from aiovmm.cli.event_monitor import EventMonitor, open_monitor

            self._monitor = EventMonitor(open_monitor(self._monitor_to, self._config))
        self._tell("vmm", "starting")
        try:
            code = await self._run()
        except asyncio.CancelledError:
            if not self._stopping or self._building is None:
                raise
            say("ended by a signal before the guest was there")
            code = 1
        self._tell("vm", "deleted")
        self._tell("vmm", "shutdown")
        if self._monitor is not None:
            await self._monitor.finish()
        return code

    def _tell(self, source: str, event: str) -> None:
        if self._monitor is not None:
            self._monitor.tell(source, event)

    async def _run(self) -> int:
        self._tell("vm", "booting" if self._restore is None else "restoring")
        # the terminal is given to a console, and taken back, by `_interact`
        vm = VM(self._config, terminal=False) if self._restore is None else self._restore.vm()
        self._handle_signals(vm)
        self._confinement.begin(self._config, self._outputs())
        self._building = asyncio.current_task()
        async with vm:
            self._building = None
            self._follow_events(vm)
            terminal = self._consoles(vm)
            with self._listening() as control:
                self._confinement.finish(self._config)
                status = await self._run_guest(vm, terminal, control)
        if status.ok and self._stays and not self._stopping:
            await self._leave.wait()
        if not status.ok and self._events_to != "2":
            say(f"the guest ended: {status.reason.value}: {status.detail}")
        if not status.ok:
            return 1
        from aiovmm.cli.status import command_status

        errors = (console.place_error for _, console in _by_importance(self._config, vm))
        lost = self._output_lost or any(isinstance(error, OSError) for error in errors)  # the journal has told of these
        return command_status(vm) or int(lost)

    def _outputs(self) -> list[Path]:
        """What is made once paths are given up, and is no part of the guest's configuration."""
        from pathlib import Path

        events_to = [] if self._events_to is None or self._events_to.isdecimal() else [Path(self._events_to)]
        return [*events_to, *([] if self._control is None else [self._control])]

    def _follow_events(self, vm: VM) -> None:
        if self._events_to is not None:
            from aiovmm.cli.events import open_events, print_events

            fd = open_events(self._events_to, self._config)
            self._spawn(print_events(vm.events(from_start=True), fd, vm.name))
        if self._monitor is not None:
            self._spawn(self._monitor.follow(vm.events(from_start=True)))

    def _listening(self) -> AbstractContextManager[socket | None]:
        """Where others ask for something. Made by whoever this process is at its start, so before it is somebody else."""
        if self._control is None:
            return nullcontext()
        from aiovmm.cli.control import listening

        return listening(self._control)

    async def _run_guest(
        self, vm: VM, terminal: tuple[ConsoleConfig, Console] | None, control: socket | None
    ) -> ExitStatus:
        """To its end."""
        serving: asyncio.Task[Any] | None = None
        if control is not None:
            from aiovmm.cli.control import serve

            serving = self._spawn(serve(vm, control, self._confinement))
        if vm.status is None:  # else a signal has come already
            await (vm.start() if self._restore is None else vm.resume())
            gc.freeze()
            gc.enable()
            if terminal is not None:
                await self._interact(vm, *terminal)
        status = await vm.wait()
        if serving is not None:
            serving.cancel()
        for task in list(self._tasks):  # they tell of the end
            await asyncio.wait([task], timeout=1)
        return status

    def _consoles(self, vm: VM) -> tuple[ConsoleConfig, Console] | None:
        """Say where consoles are; the one that gets this terminal is returned instead."""
        terminal: tuple[ConsoleConfig, Console] | None = None
        for config, console in _by_importance(self._config, vm):
            if config.mode is ConsoleMode.TTY and terminal is not None:
                console.copy_to(terminal[1])
            elif config.mode is ConsoleMode.TTY:
                _check_standard_streams()
                terminal = config, console
            elif console.place:
                say(f"{console.name} is at {console.place}")
        c = self._config
        shown = {c.serial.mode, c.console.mode, c.debug_console.mode} - {ConsoleMode.OFF, ConsoleMode.NULL}
        if not shown and self._events_to != "2":
            say("no console of the guest is shown (--serial tty shows one)")
        return terminal

    async def _interact(self, vm: VM, config: ConsoleConfig, console: Console) -> None:
        """Give this terminal to the console until the guest ends; without one, standard input and output as they are."""
        from aiovmm.console import Terminal, open_backend  # while the guest runs already
        from aiovmm.console.race import first
        from aiovmm.console.terminal import AttachEnd

        if 1 in self._closed:
            say(f"standard output is closed: what the guest prints goes nowhere ({_KEEP})")
        terminal = Terminal(on_output_lost=self._stdout_lost, filtered=self._is_filtered())
        if terminal.is_terminal():
            from aiovmm.cli.jobs import follow_job_control

            follow_job_control(terminal)
        while True:
            async with open_backend(config, console, terminal=terminal, detach=self._detach) as backend:
                end = await first(backend.wait(), self._told_to_leave())
            if end is not AttachEnd.DETACHED or self._leave.is_set():
                return
            from aiovmm.cli.menu import menu

            if not await menu(vm, terminal):
                return

    def _is_filtered(self) -> bool:
        """If any of those that are shown there is: the guest says which of them it prints to."""
        c = self._config
        return any(console.filter for console in (c.serial, c.console, c.debug_console))

    async def _told_to_leave(self) -> AttachEnd:
        """A signal after the guest's end: its last output need not be read by anybody."""
        from aiovmm.console import AttachEnd

        await self._leave.wait()
        return AttachEnd.DETACHED

    def _stdout_lost(self, error: OSError) -> None:
        if error.errno in (errno.EPIPE, errno.ECONNRESET):  # `| head`: who had seen enough has left
            say(f"nobody reads standard output any more; the guest runs on ({_KEEP})")
        else:
            self._lost("standard output", HostError("write the guest's output", error.errno or errno.EIO))

    def _lost(self, where: str, error: OSError) -> None:
        self._output_lost = True
        say(f"{where}: {error}; the guest runs on, what it prints is lost")

    def _handle_signals(self, vm: VM) -> None:
        heed(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, by=partial(self._on_signal, vm))
        for number in (
            signal.SIGTTOU,
            signal.SIGTTIN,
        ):  # a word on a terminal that a shell has taken back must not stop us
            signal.signal(number, signal.SIG_IGN)

    def _on_signal(self, vm: VM, number: signal.Signals) -> None:
        if self._building is not None:  # perhaps it waits for somebody (a vhost-user back end)
            self._stopping = True
            self._building.cancel()
        elif vm.status is not None:
            self._leave.set()  # whoever is to read the last output does not
        elif self._stopping or number is signal.SIGHUP:
            self._spawn(vm.kill(f"by {number.name}"))
        else:
            self._stopping = True
            self._spawn(vm.stop(self._stop_timeout))

    def _spawn(self, coro: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coro)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _check_standard_streams() -> None:
    """Raise ConfigError for what is no stream (a directory, one that is open the wrong way round), before the guest starts."""
    for fd, name, wrong in ((0, "input", os.O_WRONLY), (1, "output", os.O_RDONLY)):
        code = _what_is_wrong(fd, wrong)
        if code:
            hint = f"standard {name} (descriptor {fd}) is opened by who starts aiovmm; or use --serial socket=PATH"
            raise ConfigError(f"standard {name}", os.strerror(code), hint)


def _what_is_wrong(fd: int, wrong_way: int) -> int:
    """An errno, or 0. Nothing is read or written for that: on a terminal even none at all waits for another who does the same."""
    try:
        mode, flags = os.fstat(fd).st_mode, fcntl.fcntl(fd, fcntl.F_GETFL)
    except OSError as exc:
        return exc.errno or errno.EBADF
    if stat.S_ISDIR(mode):
        return errno.EISDIR
    return errno.EBADF if flags & os.O_ACCMODE == wrong_way else 0


def _by_importance(config: VMConfig, vm: VM) -> list[tuple[ConsoleConfig, Console]]:
    """The one first to which what is typed belongs, if both have the terminal: that which the command line names last."""
    both = [(config.serial, vm.serial), (config.console, vm.console)]
    names = [word for word in config.cmdline.split() if word.startswith("console=")]
    if names and names[-1].startswith("console=hvc"):
        both.reverse()
    if config.debug_console.mode is not ConsoleMode.OFF:
        both.append((config.debug_console.console, vm.debug_console))
    return both
