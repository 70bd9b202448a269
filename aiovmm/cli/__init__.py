"""The `aiovmm` command: a thin shell on the public API. Exit codes: 0 done, 1 the guest or the host failed, 2 wrong usage.

Each subcommand is a module of its own and is imported only when it is called, so that `aiovmm run` starts fast.
"""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import suppress
from typing import Any, TextIO

import click

from aiovmm.cli.messages import say
from aiovmm.cli.usage import OneLineGroup, version_option
from aiovmm.errors import AiovmmError, UsageError, host_error
from aiovmm.runtime.stdio import fill_standard_descriptors

__all__ = ["cli", "main"]

_COMMANDS = {
    "run": ("aiovmm.cli.run", "Boot a guest and talk to it."),
    "attach": ("aiovmm.cli.attach", "Attach this terminal to a console's unix socket."),
    "doctor": ("aiovmm.cli.doctor", "Say what this machine can do, and what to do about what it cannot."),
    "image": ("aiovmm.cli.image", "Make or find what a guest boots from."),
    "devices": ("aiovmm.cli.devices", "Say which devices a guest can have, and what they offer."),
}


class _LazyGroup(OneLineGroup):
    """Imports a subcommand's module when it is called; its one-line help stands in the table above."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(_COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@version_option
def cli() -> None:
    """A KVM virtual machine monitor that lives inside an asyncio program."""


def main() -> None:
    """Entry point. Errors that aiovmm raises on purpose become one line on stderr and an exit code, never a traceback; so does
    what the host refuses: a descriptor, memory, a thread, room for what is printed."""
    closed = fill_standard_descriptors()
    told = None
    try:
        cli(prog_name="aiovmm", obj=closed)
        code: Any = 0
    except SystemExit as exc:  # click's, and its only way to return
        code = exc.code
    except UsageError as exc:
        code = _failed(exc, 2)
    except AiovmmError as exc:
        code = _failed(exc, 1)
    except (OSError, MemoryError, RuntimeError) as exc:
        error = host_error(" ".join(["aiovmm", *sys.argv[1:2]]), exc)
        if error is None:
            raise
        code = _failed(error, 1)
        told = getattr(exc, "errno", None)
    sys.exit(code if _printed(told) else code or 1)


def _failed(error: BaseException, code: int) -> int:
    say(str(error))
    return code


def _printed(told: int | None) -> bool:
    """Whether standard output has taken all. If not, there is a word about it, unless the error with the number `told` had one:
    some Pythons keep what could not be printed, and fail at it again."""
    error = _flush(sys.stdout)
    had_one = told is not None and told == getattr(error, "errno", None)
    if error is not None and not had_one and not isinstance(error, BrokenPipeError):
        say(f"standard output cannot be written: {error}")
    _flush(sys.stderr)
    return error is None


def _flush(stream: TextIO) -> OSError | ValueError | None:
    """What is left of a standard stream. What cannot be printed is given up: the interpreter would end with a traceback, or with
    an exit code of its own."""
    try:
        stream.flush()
    except (OSError, ValueError) as exc:
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
        return exc
    return None
