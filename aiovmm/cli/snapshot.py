"""`aiovmm snapshot`: write a guest that another `aiovmm run` has to a directory."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from aiovmm.cli.messages import say
from aiovmm.cli.usage import OneLineCommand

__all__ = ["command"]


@click.command("snapshot", cls=OneLineCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("socket", type=click.Path(path_type=Path))
@click.argument("directory", type=click.Path(path_type=Path))
def command(socket: Path, directory: Path) -> None:
    """Write the guest of `aiovmm run --control-socket SOCKET` to DIRECTORY. It stands still for a moment, and runs on.

    `aiovmm run --restore source_url=file://DIRECTORY` goes on from there, `aiovmm fork DIRECTORY` several times. One that is
    there already is replaced, once the new one is whole.
    """
    from aiovmm.cli.control import ask

    done = asyncio.run(ask(socket, {"do": "snapshot", "path": str(directory.absolute())}))
    say(f"{directory}: {done['pages'] * 4} KiB of memory; the guest stood still for {done['standstill'] * 1000:.1f} ms")
