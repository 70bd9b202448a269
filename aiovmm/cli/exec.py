"""`aiovmm exec`: a command in a running guest, through the unix socket of its vsock."""

from __future__ import annotations

import asyncio
import errno
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import click

from aiovmm.cli.messages import say
from aiovmm.cli.usage import NAMED, OneLineCommand, Seconds, once
from aiovmm.errors import AiovmmError, UsageError
from aiovmm.runtime.stdio import heed

__all__ = ["code_of", "command", "unless_signalled", "variables"]

_OURS, _CANNOT, _NOT_FOUND, _OVER_TIME = 125, 126, 127, 124  # as env(1), timeout(1) and shells have them


@click.command(
    "exec",
    cls=OneLineCommand,
    context_settings={"help_option_names": ["-h", "--help"], "allow_interspersed_args": False},
)
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal, this one.")
@click.option("--filter", "filtered", is_flag=True, help="Show what draws alone: no queries, no clipboard.")
@once("-u", "--user", help="As this user of the guest, name or number, NAME:GROUP too (root).")
@once("-w", "--cwd", help="Its working directory (/).")
@click.option("-e", "--env", "env", multiple=True, metavar="NAME=VALUE", help="A variable of its environment.")
@once("--timeout", type=Seconds(), help="Seconds after which it is killed: exit code 124.")
@once("--wait", type=Seconds(), default=30.0, help="Seconds to wait for the guest's agent (30).")
@click.argument("socket", type=NAMED)
@click.argument("words", nargs=-1, required=True, metavar="COMMAND...")
def command(
    socket: Path,
    words: tuple[str, ...],
    tty: bool,
    filtered: bool,
    user: str | None,
    cwd: str | None,
    env: tuple[str, ...],
    timeout: float | None,
    wait: float,
) -> None:
    """Run COMMAND in the guest whose vsock has the unix socket SOCKET (`aiovmm run --vsock socket=SOCKET`), and which
    runs the agent (`aiovmm image initramfs --agent`).

    Standard input, output and error are the command's, signals go to it, and its status is the exit code; 128 and the
    number of a signal that ended it. It is over when COMMAND has ended, whatever that has left running. 127: there is
    no such command. 126: it cannot be run. 125: aiovmm could not do it.

    A terminal that is not the command's own (--tty) is shown what draws alone in any case.

    In a guest of `aiovmm run --rootfs` it has the environment, user and directory that the image or that command said.
    """
    from aiovmm.agent import Agent
    from aiovmm.agent.place import HybridPlace
    from aiovmm.agent.process import create
    from aiovmm.cli.carry import carry, require_terminal
    from aiovmm.runtime.awake import awake_timeout
    from aiovmm.sandboxes.listed import defaults_at

    own = defaults_at(socket)
    line = words[1:] if words[0] == "--" else words
    if not line:
        raise UsageError("Missing argument 'COMMAND...'")
    if words[0].startswith("-") and line is words:
        raise UsageError(f"{words[0]}: options come before SOCKET, and -- before a COMMAND that begins like one")
    if tty:
        require_terminal()

    async def run() -> int:
        agent = Agent(HybridPlace(socket))
        try:
            await agent.ready(wait)
            how = own.but(variables(env), user, cwd)
            process = await create(
                agent, line, (-1, -1, -1), pty=tty, user=how.user, cwd=how.cwd, env=how.env, ends=True
            )
            async with awake_timeout(timeout):
                return await carry(process, terminal=tty, filtered=filtered)
        finally:
            agent.close()

    sys.exit(code_of(lambda: unless_signalled(run()), timeout))


def code_of(work: Callable[[], Coroutine[Any, Any, int]], timeout: float | None = None) -> int:
    """The exit code of a command in a guest; what cannot be done is said."""
    from aiovmm.agent.errors import AgentError, CommandNotFound, GuestOSError
    from aiovmm.agent.process import RUNNING
    from aiovmm.cli.loops import run_on_uvloop

    try:
        return run_on_uvloop(work)
    except UsageError:
        raise
    except CommandNotFound as exc:
        return _failed(exc, _NOT_FOUND)
    except GuestOSError as exc:
        return _failed(exc, _CANNOT if exc.operation == RUNNING or exc.errno == errno.EACCES else _OURS)
    except AgentError as exc:
        return _failed(exc, _OURS)
    except TimeoutError:
        say(f"the command did not end within {timeout:g} s")
        return _OVER_TIME
    except AiovmmError as exc:
        return _failed(exc, _OURS)


async def unless_signalled(work: Coroutine[Any, Any, int]) -> int:
    """A signal cancels it, and is its exit code as shells say it; but one that it has taken for itself, as for its command."""
    task, came = asyncio.current_task(), list[int]()
    assert task is not None

    def leave(number: int) -> None:
        came.append(number)
        task.cancel()

    heed(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, by=leave)
    try:
        return await work
    except asyncio.CancelledError:
        if not came:
            raise
        return 128 + came[0]


def _failed(error: AiovmmError, code: int) -> int:
    say(str(error))
    return code


def variables(words: tuple[str, ...]) -> dict[str, str]:
    """NAME=VALUE as a mapping. Raises UsageError."""
    found = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not separator or not name:
            raise UsageError(f"--env {word!r}: say NAME=VALUE")
        found[name] = value
    return found
