"""The `aiovmm` command: a thin shell on the public API. Exit codes: 0 done, 1 the guest or the host failed, 2 wrong usage.

Each subcommand is a module of its own and is imported only when it is called, so that `aiovmm run` starts fast; where there is
nothing to explain it does without click, too (`run_options`).
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

from aiovmm.cli.messages import say, settle
from aiovmm.cli.run_options import read_plain
from aiovmm.errors import AiovmmError, UsageError, host_error
from aiovmm.runtime.lazy import lazy_names
from aiovmm.runtime.remarks import heard_by
from aiovmm.runtime.stdio import Ended, die_by, end_by_exceptions, fill_standard_descriptors

if TYPE_CHECKING:
    from aiovmm.cli.commands import cli

__all__ = ["cli", "main"]

_COMPLETION = "_AIOVMM_COMPLETE"
"""In the environment, it is a question of a shell that completes words, which click answers."""

__getattr__ = lazy_names(__name__, {"aiovmm.cli.commands": "cli"})


def main() -> None:
    """Entry point. Errors that aiovmm raises on purpose become one line on stderr and an exit code, never a traceback; so does
    what the host refuses: a descriptor, memory, a thread, room for what is printed."""
    closed = fill_standard_descriptors()
    told = by = None
    try:
        with heard_by(say):
            _run(sys.argv[1:], closed)
        code: Any = 0
    except Ended as exc:
        by = exc.number
        code = _failed(exc, 128 + by)
    except SystemExit as exc:  # click's, and its only way to return
        code = exc.code
    except KeyboardInterrupt:  # before the session has its own handlers
        say("interrupted")
        code = 1
    except UsageError as exc:
        code = _failed(exc, 2)
    except AiovmmError as exc:
        code = _failed(exc, 1)
    except (OSError, MemoryError, ImportError, RuntimeError, SystemError) as exc:
        error = host_error(" ".join(["aiovmm", *sys.argv[1:2]]), exc)
        if error is None:
            raise
        code = _failed(error, 1)
        told = getattr(exc, "errno", None)
    printed = _printed(told)
    if by is not None:
        die_by(by)
    sys.exit(code if printed else code or 1)


def _run(args: list[str], closed: Sequence[int]) -> None:
    plain = read_plain(args[1:]) if args[:1] == ["run"] and _COMPLETION not in os.environ else None
    if plain is not None:
        end_by_exceptions()
        gc.disable()  # what a start imports is no garbage; it is enabled when the guest runs
        try:
            from aiovmm.cli.start import start

            start(plain, closed)
        finally:
            gc.enable()
    else:
        from aiovmm.cli.commands import cli

        cli(prog_name="aiovmm", obj=closed)


def _failed(error: BaseException, code: int) -> int:
    say(str(error))
    return code


def _printed(told: int | None) -> bool:
    """Whether standard output has taken all. If not, there is a word about it, unless the error with the number `told` had one:
    some Pythons keep what could not be printed, and fail at it again."""
    settle()
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
