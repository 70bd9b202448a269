"""Signals of the terminal in programs that tests start."""

from __future__ import annotations

import signal

__all__ = ["heeded_by_programs"]


def heeded_by_programs() -> None:
    """A shell has what it runs in the background ignore the keys of SIGINT and SIGQUIT, and `nohup` has SIGHUP ignored, and so do
    all that they start (a script's `make test &`). This process goes on ignoring them, by a handler, which programs do not
    inherit."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
