"""`aiovmm ps`: which guests of this user run."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from aiovmm.cli.usage import OneLineCommand
from aiovmm.errors import printable

if TYPE_CHECKING:
    from aiovmm.sandboxes.listed import Entry

__all__ = ["command"]


@click.command("ps", cls=OneLineCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def command(as_json: bool) -> None:
    """List the guests of `aiovmm run --rootfs`: what they are, which ports of this host's lead to theirs, and the SOCKET for
    `aiovmm exec`. STATE: preparing (their image), booting, running."""
    from aiovmm.sandboxes.listed import listed

    entries = listed()
    if as_json:
        for entry in entries:
            click.echo(json.dumps({**asdict(entry), "socket": str(entry.socket)}))
        return
    rows = [("ID", "NAME", "STATE", "PID", "AGE", "MEMORY", "PORTS", "ROOT", "COMMAND", "SOCKET"), *map(_row, entries)]
    widths = [min(40, max(len(row[column]) for row in rows)) for column in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        click.echo(printable("  ".join(cells).rstrip()))


def _row(entry: Entry) -> tuple[str, ...]:
    age = f"{time.time() - entry.started:.0f}s"
    memory = f"{entry.memory >> 20}M" if entry.memory else "-"
    ports = ",".join(f"{host}:{guest}" for host, guest in entry.ports) or "-"
    about = (entry.id, entry.name, entry.state, str(entry.pid), age, memory, ports)
    return (*about, entry.root, entry.command, str(entry.socket))
