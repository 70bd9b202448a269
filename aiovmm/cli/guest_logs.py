"""`aiovmm logs`: what the console of a running guest has printed."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable, Generator, Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import click

from aiovmm.cli.usage import OneLineCommand
from aiovmm.errors import UsageError

__all__ = ["command", "follow"]

_POLL = 0.1  # seconds between two looks at a file
_PART = 1 << 16
_HOW = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY
_INTERRUPTED = 130  # as shells say it


@click.command("logs", cls=OneLineCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-f", "--follow", "follows", is_flag=True, help="Go on until the guest ends.")
@click.argument("guest")
def command(guest: str, follows: bool) -> None:
    """Print what the console of GUEST, a name or an id of `aiovmm ps`, has printed: its kernel's messages and what follows.

    A terminal is shown what draws on it alone: no queries, no clipboard.
    """
    from aiovmm.console.guard import OutputGuard
    from aiovmm.sandboxes.listed import find_listed

    entry = find_listed(guest)
    guard = OutputGuard() if sys.stdout.isatty() else None
    try:
        for data in follow(entry.console, wait=follows, lives=lambda: entry.lives):
            sys.stdout.buffer.write(data if guard is None else guard.feed(data))
            sys.stdout.buffer.flush()
    except KeyboardInterrupt:  # as one leaves what one follows
        sys.exit(_INTERRUPTED)


def follow(path: Path, *, wait: bool, lives: Callable[[], bool] = lambda: True) -> Iterator[bytes]:
    """What is in the file before, and in the file at `path`; with `wait` what is written to it and to its successors, until
    there is none, or nobody `lives` who writes. Nothing is left out where one follows the other: a file is read to its end once
    it has another name. Raises UsageError for what is no file."""
    before: Path | None = path.with_name(f"{path.name}.old")
    while path.parent.exists():
        try:
            file = _opened(path)
        except FileNotFoundError:
            if not wait or not lives():
                break
            time.sleep(_POLL)
            continue
        with file:
            if before is not None:
                with _opened_if_there(before) as old:
                    if not _is_at(file.fileno(), path):
                        continue  # they have changed places meanwhile
                    yield from _rest(old)
                before = None
            alive = yield from _to_its_end(file, path, wait, lives)
        if not alive:
            return
    if before is not None:
        with _opened_if_there(before) as old:
            yield from _rest(old)


def _opened(path: Path) -> BinaryIO:
    """The folder is its guest's monitor's, which may be the guest's own by now: no FIFO keeps who looks, no link leads him
    elsewhere. Raises FileNotFoundError, UsageError."""
    try:
        file = open(os.open(path, _HOW), "rb")  # noqa: SIM115 - who asks closes it
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise UsageError(f"{path} cannot be read: {os.strerror(exc.errno or 0)}") from exc
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise UsageError(f"{path} is no file: its guest's monitor has put something else there")


def _opened_if_there(path: Path) -> BinaryIO:
    try:
        return _opened(path)
    except FileNotFoundError:
        return BytesIO()


def _rest(file: BinaryIO) -> Iterator[bytes]:
    while data := file.read(_PART):
        yield data


def _to_its_end(file: BinaryIO, path: Path, wait: bool, lives: Callable[[], bool]) -> Generator[bytes, None, bool]:
    """Until all is read, with `wait` until nothing is written any more, for the file is not at `path` now, or nobody lives.
    Whether there may be another file."""
    while True:
        alive = wait and lives()
        last = not alive or not _is_at(file.fileno(), path)
        yield from _rest(file)
        if last:
            return alive
        time.sleep(_POLL)


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.fstat(fd).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False
