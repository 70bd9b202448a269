"""`aiovmm ps`: which guests of this user run."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

import click

from aiovmm.cli.usage import OneLineCommand

__all__ = ["command"]


@click.command("ps", cls=OneLineCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def command(as_json: bool) -> None:
    """List the guests of `aiovmm run --rootfs`: what they are, and the SOCKET for `aiovmm exec`."""
    from aiovmm.sandboxes.listed import listed

    entries = listed()
    if as_json:
        for entry in entries:
            click.echo(json.dumps({**asdict(entry), "socket": str(entry.socket)}))
        return
    rows = [("ID", "NAME", "PID", "AGE", "MEMORY", "ROOT", "COMMAND", "SOCKET")]
    for entry in entries:
        age = f"{time.time() - entry.started:.0f}s"
        memory = f"{entry.memory >> 20}M"
        rows.append((entry.id, entry.name, str(entry.pid), age, memory, entry.root, entry.command, str(entry.socket)))
    widths = [min(40, max(len(row[column]) for row in rows)) for column in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        click.echo("  ".join(cells).rstrip())
