"""`aiovmm fork`: several guests in one process that go on from one snapshot."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import click

from aiovmm.cli.messages import say
from aiovmm.cli.usage import NAMED, OneLineCommand, Seconds, once
from aiovmm.errors import ConfigError
from aiovmm.runtime.stdio import heed

__all__ = ["command"]

_FIRST_CID = 1000


@click.command("fork", cls=OneLineCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("directory", type=NAMED)
@once("-n", "number", type=click.IntRange(1, 10_000), default=1, help="How many guests (1).")
@once("--sockets", type=NAMED, help="Where NAME.serial, NAME.console and NAME.vsock are made.")
@once("--within", metavar="DIR", help="Open nothing that the snapshot names elsewhere: for one that others have made.")
@once("--stop-timeout", type=Seconds(86400), default=10.0, help="Seconds a guest has to power off (10).")
def command(directory: Path, number: int, sockets: Path | None, within: str | None, stop_timeout: float) -> None:
    """Run NUMBER guests that all go on from the snapshot in DIRECTORY, until they end or a signal comes.

    They have its memory in common until they write to it, and each disk that can be written to has an overlay of its own,
    which goes with its guest. With --sockets each has its consoles and its vsock there: see `aiovmm attach`, `aiovmm exec`.
    --within is that of `aiovmm run --restore`.
    The exit code is 1 if one of them failed, as that of `aiovmm run` is.
    """
    from aiovmm.cli.loops import run_on_uvloop

    if within == "":  # a variable that nobody has set is no bound
        raise ConfigError("--within", "is empty", "say --within DIR, or leave it out")
    sys.exit(run_on_uvloop(lambda: _run(directory, number, sockets, within, stop_timeout)))


async def _run(directory: Path, number: int, sockets: Path | None, within: str | None, stop_timeout: float) -> int:
    """The exit code: 1 if a guest did not end as guests should."""
    signals = _Signals()
    try:
        return await _forked(directory, number, sockets, within, stop_timeout, signals)
    except asyncio.CancelledError:
        if not signals.told.is_set():
            raise
        say("ended by a signal before the guests were there")
        return 1


class _Signals:
    """The first stops the guests, and whoever makes them, for that may wait for somebody; a second one kills them."""

    def __init__(self) -> None:
        self.told, self.again = asyncio.Event(), asyncio.Event()
        self.making = asyncio.current_task()
        heed(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, by=self._came)

    def _came(self, _number: int) -> None:
        (self.again if self.told.is_set() else self.told).set()
        if self.making is not None:
            self.making.cancel()


async def _forked(
    directory: Path, number: int, sockets: Path | None, within: str | None, stop_timeout: float, signals: _Signals
) -> int:
    from aiovmm.snapshot.template import Template

    async with await Template.open(directory, within=within) as template, AsyncExitStack() as stack:
        vms = []
        for index in range(number):
            name = f"{template.name}-{index}"
            fork = template.fork(name, overrides=_places(template.config, name, sockets, _FIRST_CID + index))
            vm = await stack.enter_async_context(fork)
            await vm.resume()
            vms.append(vm)
        signals.making = None
        say(f"{number} guests run: {vms[0].name} to {vms[-1].name}")
        ended = asyncio.gather(*(vm.wait() for vm in vms))
        if await _comes_before(ended, signals.told):
            stopped = asyncio.gather(*(vm.stop(stop_timeout) for vm in vms))
            if await _comes_before(stopped, signals.again):
                await asyncio.gather(*(vm.kill("by a signal") for vm in vms))
            await stopped
        failed = [(vm.name, status) for vm, status in zip(vms, await ended, strict=True) if not status.ok]
        for name, status in failed:
            say(f"{name} ended: {status.reason.value}: {status.detail}")
    return 1 if failed else 0


async def _comes_before(done: asyncio.Future[Any], event: asyncio.Event) -> bool:
    """Whether `event` does."""
    came = asyncio.ensure_future(event.wait())
    await asyncio.wait((done, came), return_when=asyncio.FIRST_COMPLETED)
    came.cancel()
    return not done.done()


def _places(config: Any, name: str, sockets: Path | None, cid: int) -> dict[str, Any]:
    from aiovmm.config import ConsoleMode
    from aiovmm.runtime.dataclass import replace

    changes: dict[str, Any] = {}
    if config.vsock is not None:
        changes["vsock"] = replace(config.vsock, cid=cid, socket=sockets / f"{name}.vsock" if sockets else None)
    for console in ("serial", "console") if sockets is not None else ():
        there = getattr(config, console)
        if there.mode is not ConsoleMode.OFF:
            assert sockets is not None
            changes[console] = replace(there, mode=ConsoleMode.SOCKET, path=sockets / f"{name}.{console}")
    return changes
