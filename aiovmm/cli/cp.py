"""`aiovmm cp`: files and directories into a running guest and out of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aiovmm.cli.exec import unless_signalled
from aiovmm.cli.messages import say
from aiovmm.cli.usage import OneLineCommand, Seconds, once
from aiovmm.errors import UsageError

if TYPE_CHECKING:
    from aiovmm.agent.files import Files
    from aiovmm.agent.host_tree import Copied

__all__ = ["command", "split"]


@click.command("cp", cls=OneLineCommand, context_settings={"help_option_names": ["-h", "--help"]})
@once("-u", "--user", help="As this user of the guest (root).")
@once("--wait", type=Seconds(), default=30.0, help="Seconds to wait for the guest's agent (30).")
@once("--limit", metavar="SIZE", help="Bytes to take out of a guest at most, sparse or not (64G).")
@click.argument("source")
@click.argument("target")
def command(source: str, target: str, user: str | None, wait: float, limit: str | None) -> None:
    """Copy SOURCE, a file or a directory with all below it, to TARGET. One of them is in a guest: SOCKET:/PATH, where
    SOCKET is the unix socket of its vsock (see `aiovmm exec`). Into a TARGET that is a directory it goes under its own
    name.

    Of modes the permissions are kept, setuid is not. Out of a guest come files, directories, and links that stay within
    them.
    """
    from aiovmm.cli.loops import run_on_uvloop
    from aiovmm.config.text import to_size

    most = None if limit is None else to_size("--limit", limit)
    guest_source, guest_target = split(source), split(target)
    if (guest_source is None) == (guest_target is None):
        raise UsageError("one of SOURCE and TARGET is in a guest: SOCKET:/PATH")

    async def run() -> Copied:
        from aiovmm.agent import Agent
        from aiovmm.agent.files import Files
        from aiovmm.agent.place import HybridPlace

        agent = Agent(HybridPlace((guest_source or guest_target or (Path(), ""))[0]))
        try:
            await agent.ready(wait)
            files = Files(agent)
            if guest_source is not None:
                there = _host_target(guest_source[1], target)
                return await files.copy_out(guest_source[1], there, limit=most, user=user)
            assert guest_target is not None
            return await files.copy_in(source, await _guest_target(files, source, guest_target[1], user), user=user)
        finally:
            agent.close()

    async def told() -> int:
        return _told(await run(), source)

    sys.exit(run_on_uvloop(lambda: unless_signalled(told())))


def _told(copied: Copied, source: str) -> int:
    """Say what was left out; the exit code."""
    for path, why in copied.left_out:
        say(f"left out: {path or source}: {why}")
    if copied.untold:
        say(f"left out: {copied.untold} more")
    return int(any(not path for path, _ in copied.left_out))  # it is what was asked for itself


def split(text: str) -> tuple[Path, str] | None:
    """The socket and the path of SOCKET:/PATH; None for a path of the host, which "./" in front makes of anything."""
    socket, separator, path = text.partition(":/")
    return (Path(socket), "/" + path) if separator and socket and not text.startswith("./") else None


def _host_target(source: str, target: str) -> str:
    name = os.path.basename(os.path.normpath(source))
    return os.path.join(target, name) if os.path.isdir(target) and name else target


async def _guest_target(files: Files, source: str, target: str, user: str | None) -> str:
    name = Path(os.path.abspath(source)).name  # noqa: ASYNC240 - it looks at nothing
    try:
        inside = (await files.stat(target, user=user)).is_dir
    except (FileNotFoundError, NotADirectoryError):
        inside = False
    return os.path.join(target, name) if inside and name else target
