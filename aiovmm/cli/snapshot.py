"""`aiovmm snapshot`: write a guest that another `aiovmm run` has to a directory."""

from __future__ import annotations

from pathlib import Path

import click

from aiovmm.cli.messages import say
from aiovmm.cli.usage import NAMED, OneLineCommand, once

__all__ = ["command"]


@click.command("snapshot", cls=OneLineCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("socket", type=NAMED)
@click.argument("directory", type=NAMED)
@once("--track", is_flag=True, help="So that the next one can have this one as its base.")
@once("--base", type=NAMED, help="A snapshot: only what was written since is in the new one.")
def command(socket: Path, directory: Path, track: bool, base: Path | None) -> None:
    """Write the guest of `aiovmm run --control-socket SOCKET` to DIRECTORY. It stands still for a moment, and runs on.

    `aiovmm run --restore source_url=file://DIRECTORY` goes on from there, `aiovmm fork DIRECTORY` several times. One that is
    there already is replaced, once the new one is whole.

    With --base only what the guest has written since that one goes to DIRECTORY, and both are needed to go on. It can be the
    one that the guest was restored from, or the last one taken with --track or --base.
    """
    from aiovmm.cli.control import ask
    from aiovmm.cli.loops import run

    what = {"do": "snapshot", "path": str(directory.absolute()), "track": bool(track)}
    if base is not None:
        what["base"] = str(base.absolute())
    done = run(lambda: ask(socket, what, pages=int, standstill=float))
    say(f"{directory}: {done['pages'] * 4} KiB of memory; the guest stood still for {done['standstill'] * 1000:.1f} ms")
