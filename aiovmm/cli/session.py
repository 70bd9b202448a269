"""One `aiovmm run`: the VM, the terminal, the signals, and the exit code."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from functools import cached_property
from typing import Any

from aiovmm.config import ConsoleConfig, ConsoleMode, VMConfig
from aiovmm.console import Console, parse_keys
from aiovmm.events import Subscription
from aiovmm.lifecycle import Event, VMState
from aiovmm.vm import VM

__all__ = ["Session"]

_MENU = "[detached; the guest runs on]  a: attach again   p: power button   k: kill   "


class Session:
    """Runs one VM in the foreground. SIGTERM and SIGINT stop it (power button, then kill), a second one kills it."""

    def __init__(
        self, config: VMConfig, *, detach_keys: str, stop_timeout: float, as_json: bool, verbosity: int = 0
    ) -> None:
        self._config = config
        self._detach = parse_keys(detach_keys)
        self._stop_timeout = stop_timeout
        self._as_json = as_json
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False
        _configure_logging(verbosity)

    async def run(self) -> int:
        """Run the guest to its end; the exit code."""
        vm = VM(self._config, terminal=False)  # which is given to a console, and taken back, by `_interact`
        self._handle_signals(vm)
        async with vm:
            if self._as_json:
                self._spawn(_print_events(vm.events(from_start=True)))
            terminal = self._consoles(vm)
            if vm.state is VMState.CREATED:  # else a signal has come already
                await vm.start()
                gc.freeze()
                gc.enable()
                if terminal is not None:
                    await self._interact(vm, *terminal)
            status = await vm.wait()
            for task in list(self._tasks):
                await asyncio.wait([task], timeout=1)
        if not status.ok and not self._as_json:
            print(f"aiovmm: the guest ended: {status.reason.value}: {status.detail}", file=sys.stderr)
        return 0 if status.ok else 1

    def _consoles(self, vm: VM) -> tuple[ConsoleConfig, Console] | None:
        """Say where consoles are; the one that gets this terminal is returned instead."""
        terminal = None
        for config, console in ((self._config.serial, vm.serial), (self._config.console, vm.console)):
            if config.mode is ConsoleMode.TTY:
                terminal = config, console
            elif console.place:
                print(f"aiovmm: {console.name} is at {console.place}", file=sys.stderr)
        return terminal

    async def _interact(self, vm: VM, config: ConsoleConfig, console: Console) -> None:
        """Give this terminal to the console until the guest ends; without a terminal, standard input and output as they are."""
        from aiovmm.console import AttachEnd, open_backend  # while the guest runs already

        while True:
            async with open_backend(config, console, detach=self._detach) as backend:
                end = await backend.wait()
            if end is not AttachEnd.DETACHED or not await self._menu(vm):
                return

    async def _menu(self, vm: VM) -> bool:
        """What to do while detached; True to attach again, False when the guest has ended."""
        loop = asyncio.get_running_loop()
        lines: asyncio.Queue[bytes] = asyncio.Queue()
        loop.add_reader(0, lambda: lines.put_nowait(os.read(0, 256)))  # the terminal is in line mode
        ended = asyncio.ensure_future(vm.wait())
        try:
            while True:
                print(f"\r\n{_MENU}", end="", flush=True)
                line = asyncio.ensure_future(lines.get())
                await asyncio.wait([line, ended], return_when=asyncio.FIRST_COMPLETED)
                if ended.done():
                    line.cancel()
                    return False
                match line.result().lower()[:1]:
                    case b"a":
                        return True
                    case b"p" if vm.state is VMState.RUNNING:
                        vm.shutdown()
                    case b"k":
                        await vm.kill("from the keyboard")
                    case b"":  # the end of input: nobody is there to be asked
                        return False
        finally:
            loop.remove_reader(0)
            ended.cancel()

    def _handle_signals(self, vm: VM) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal, vm, number)

    def _on_signal(self, vm: VM, number: signal.Signals) -> None:
        if self._stopping or number is signal.SIGHUP:
            self._spawn(vm.kill(f"by {number.name}"))
        else:
            self._stopping = True
            self._spawn(vm.stop(self._stop_timeout))

    def _spawn(self, coro: Any) -> None:
        task = asyncio.ensure_future(coro)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def event_as_dict(event: Event) -> dict[str, Any]:
    """An event as plain data for JSON."""
    row: dict[str, Any] = {"event": event.kind.value, "vm": event.vm, "time": event.time}
    if event.detail:
        row["detail"] = event.detail
    if event.device:
        row["device"] = event.device
    if event.error:
        row["error"] = type(event.error).__name__
    if isinstance(event.error, OSError) and event.error.errno:
        row["errno"] = event.error.errno
    if event.status:
        row["reason"] = event.status.reason.value
    return row


class _LazyFormatter(logging.Formatter):
    """structlog's formatter for terminals, imported with the first line that is printed: most runs print none."""

    @cached_property
    def _formatter(self) -> logging.Formatter:
        import structlog

        return structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_log_level],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty() and "NO_COLOR" not in os.environ),
            ],
        )

    def format(self, record: logging.LogRecord) -> str:
        return self._formatter.format(record)


async def _print_events(events: Subscription) -> None:
    import json

    async for event in events:
        print(json.dumps(event_as_dict(event)), file=sys.stderr, flush=True)


def _configure_logging(verbosity: int) -> None:
    level = [logging.WARNING, logging.INFO, logging.DEBUG][min(verbosity, 2)]
    handler = logging.StreamHandler()
    handler.setFormatter(_LazyFormatter())
    logger = logging.getLogger("aiovmm")
    logger.addHandler(handler)
    logger.setLevel(level)
