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
from aiovmm.cli.usage import OneLineCommand, once
from aiovmm.errors import ConfigError

__all__ = ["command"]

_FIRST_CID = 1000


@click.command("fork", cls=OneLineCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("directory", type=click.Path(path_type=Path))
@once("-n", "number", type=click.IntRange(1, 10_000), default=1, help="How many guests (1).")
@once("--sockets", type=click.Path(path_type=Path), help="Where NAME.serial, NAME.console and NAME.vsock are made.")
@once("--within", metavar="DIR", help="Open nothing that the snapshot names elsewhere: for one that others have made.")
@once("--stop-timeout", type=click.FloatRange(0, 86400), default=10.0, help="Seconds a guest has to power off (10).")
def command(directory: Path, number: int, sockets: Path | None, within: str | None, stop_timeout: float) -> None:
    """Run NUMBER guests that all go on from the snapshot in DIRECTORY, until they end or a signal comes.

    They have its memory in common until they write to it, and each disk that can be written to has an overlay of its own,
    which goes with its guest. With --sockets each has its consoles and its vsock there: see `aiovmm attach`, `aiovmm exec`.
    --within is that of `aiovmm run --restore`.
    The exit code is 1 if one of them failed, as that of `aiovmm run` is.
    """
    import uvloop

    if within == "":  # a variable that nobody has set is no bound
        raise ConfigError("--within", "is empty", "say --within DIR, or leave it out")
    sys.exit(uvloop.run(_run(directory, number, sockets, within, stop_timeout)))


async def _run(directory: Path, number: int, sockets: Path | None, within: str | None, stop_timeout: float) -> int:
    """The exit code: 1 if a guest did not end as guests should."""
    from aiovmm.snapshot.template import Template

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(signum, stop.set)
    async with await Template.open(directory, within=within) as template, AsyncExitStack() as stack:
        vms = []
        for index in range(number):
            name = f"{template.name}-{index}"
            fork = template.fork(name, overrides=_places(template.config, name, sockets, _FIRST_CID + index))
            vm = await stack.enter_async_context(fork)
            await vm.resume()
            vms.append(vm)
        say(f"{number} guests run: {vms[0].name} to {vms[-1].name}")
        ended = asyncio.gather(*(vm.wait() for vm in vms))
        told = asyncio.ensure_future(stop.wait())
        await asyncio.wait((ended, told), return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        if not ended.done():
            await asyncio.gather(*(vm.stop(stop_timeout) for vm in vms))
        failed = [(vm.name, status) for vm, status in zip(vms, await ended, strict=True) if not status.ok]
        for name, status in failed:
            say(f"{name} ended: {status.reason.value}: {status.detail}")
    return 1 if failed else 0


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
