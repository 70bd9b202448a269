"""What a program finds at its start: standard input, output and error, there or not, others, and signals that are ignored.

A signal that would end a command where it stands is an exception instead (`end_by_exceptions`), so that what it has begun is
undone: a file that is not whole yet, a program that it waits for. Who has an event loop heeds signals there (`heed`)."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable
    from signal import Signals

__all__ = [
    "Ended",
    "die_by",
    "end_by_exceptions",
    "fill_standard_descriptors",
    "heed",
    "require_descriptors",
    "was_given",
]


def fill_standard_descriptors() -> tuple[int, ...]:
    """Open /dev/null in the place of those of descriptors 0, 1 and 2 that are closed, as they may be at a program's start; which.

    Without it the next files that are opened get these numbers: prints go into them, and uvloop, whose library takes none of its
    own to be one of the three, aborts the process. A program calls this first, before it opens anything or makes a loop.
    """
    missing = tuple(fd for fd in range(3) if not _is_open(fd))
    for fd in missing:
        opened = os.open(os.devnull, os.O_RDONLY if fd == 0 else os.O_WRONLY)
        if opened != fd:  # a lower number was free
            os.dup2(opened, fd)
            os.close(opened)
        os.set_inheritable(fd, True)
    for fd, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        if fd in missing and getattr(sys, name) is None:  # else `print(file=sys.stderr)` would print to standard output
            setattr(sys, name, open(fd, "r" if fd == 0 else "w", closefd=False, encoding="utf-8"))  # noqa: SIM115
    return missing


def was_given(fd: int) -> bool:
    """Whether who started the program passed this descriptor on: what is opened since is closed by exec, and that one is not."""
    try:
        return os.get_inheritable(fd)
    except (OSError, OverflowError):
        return False


def require_descriptors(number: int) -> None:
    """Raise OSError (EMFILE) unless `number` more may be open. uvloop does not take it well when it has too few: it aborts."""
    opened: list[int] = []
    try:
        for _ in range(number):
            opened.append(os.dup(0))
    finally:
        for fd in opened:
            os.close(fd)


def heed(*numbers: Signals, by: Callable[[Signals], object]) -> None:
    """Have the running loop call `by` with each that comes. SIGHUP stays ignored for whoever was started so, by `nohup`: it is to
    outlive its terminal."""
    import asyncio  # for who has a loop, and with it both
    import signal

    loop = asyncio.get_running_loop()
    for number in numbers:
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, by, number)


class Ended(SystemExit):
    """By the signal `number`, which kills the second time: undoing may take longer than somebody waits."""

    def __init__(self, number: Signals) -> None:
        super().__init__(f"ended by {number.name}")
        self.number = number


def end_by_exceptions() -> None:
    """From now on, unless who started us has them ignored, as `nohup` does."""
    import signal  # for who does something: help does without

    with suppress(ValueError):  # in a thread: of a program whose signals are its own
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _raise)


def _raise(number: int, _frame: object) -> NoReturn:
    import signal

    signal.signal(number, signal.SIG_DFL)
    raise Ended(signal.Signals(number))


def die_by(number: Signals) -> None:
    """As if nobody had caught it, so that who waits for us sees what it was. The first process of a container lives on."""
    import signal

    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
