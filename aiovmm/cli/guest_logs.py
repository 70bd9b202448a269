"""`aiovmm logs`: what the console of a running guest has printed."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import BinaryIO

import click

from aiovmm.cli.usage import OneLineCommand

__all__ = ["command", "follow"]

_POLL = 0.1  # seconds between two looks at a file
_PART = 1 << 16
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
    it has another name."""
    before: Path | None = path.with_name(f"{path.name}.old")
    while path.parent.exists():
        try:
            file = open(path, "rb")  # noqa: SIM115 - closed below
        except FileNotFoundError:
            if not wait or not lives():
                break
            time.sleep(_POLL)
            continue
        with file:
            if before is not None:
                old = before.read_bytes() if before.exists() else b""
                if not _is_at(file.fileno(), path):
                    continue  # they have changed places meanwhile
                yield old
                before = None
            alive = yield from _to_its_end(file, path, wait, lives)
        if not alive:
            return
    if before is not None and before.exists():
        yield before.read_bytes()


def _to_its_end(file: BinaryIO, path: Path, wait: bool, lives: Callable[[], bool]) -> Generator[bytes, None, bool]:
    """Until all is read, with `wait` until nothing is written any more, for the file is not at `path` now, or nobody lives.
    Whether there may be another file."""
    while True:
        alive = wait and lives()
        last = not alive or not _is_at(file.fileno(), path)
        while data := file.read(_PART):
            yield data
        if last:
            return alive
        time.sleep(_POLL)


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.fstat(fd).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False
