"""`aiovmm attach`: this terminal to a console's unix socket (`aiovmm run --serial socket=PATH`)."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import click

from aiovmm.cli.messages import say
from aiovmm.cli.usage import NAMED, OneLineCommand, once
from aiovmm.runtime.stdio import heed

__all__ = ["command"]


@click.command("attach", cls=OneLineCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("path", type=NAMED)
@once("--detach-keys", default="ctrl-p,ctrl-q", help="Keys that detach; the guest runs on (ctrl-p,ctrl-q).")
@click.option("--filter", "filtered", is_flag=True, help="Show what draws alone: no queries, no clipboard.")
def command(path: Path, detach_keys: str, filtered: bool) -> None:
    """Attach this terminal to the console at the unix socket PATH. What the guest printed before is shown first."""
    from aiovmm.cli.jobs import follow_job_control
    from aiovmm.cli.loops import run_on_uvloop
    from aiovmm.console import AttachEnd, Terminal, attach_socket, parse_keys

    async def run() -> AttachEnd:
        terminal = Terminal(
            on_output_lost=lambda exc: say(f"standard output cannot be written: {exc.strerror}"), filtered=filtered
        )
        task = asyncio.current_task()
        assert task is not None
        follow_job_control(terminal)
        heed(signal.SIGTERM, signal.SIGHUP, by=lambda _: task.cancel())
        return await attach_socket(path, terminal=terminal, detach=parse_keys(detach_keys))

    try:
        end = run_on_uvloop(run)
    except asyncio.CancelledError:
        sys.exit(1)
    say(end.value, below=True)
