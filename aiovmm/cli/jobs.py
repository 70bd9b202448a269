"""A terminal's job control and size, as signals tell of them: for a command that has the process to itself."""

from __future__ import annotations

import asyncio
import os
import signal

from aiovmm.console import Terminal

__all__ = ["follow_job_control", "ignore_stops_by_the_terminal"]


def ignore_stops_by_the_terminal() -> None:
    """A word on a terminal that a shell has taken back (`stty tostop`) must not stop the guest."""
    for number in (signal.SIGTTOU, signal.SIGTTIN):
        signal.signal(number, signal.SIG_IGN)


def follow_job_control(terminal: Terminal) -> None:
    """Handlers on the running loop: SIGTSTP puts the terminal back and stops us, SIGCONT takes it again, SIGWINCH is its size."""
    loop = asyncio.get_running_loop()

    def suspend() -> None:
        terminal.suspend()
        loop.remove_signal_handler(
            signal.SIGTSTP
        )  # the kernel stops us, unless there is no shell that could continue us
        os.kill(os.getpid(), signal.SIGTSTP)
        loop.add_signal_handler(signal.SIGTSTP, suspend)
        terminal.continued()

    ignore_stops_by_the_terminal()
    loop.add_signal_handler(signal.SIGTSTP, suspend)
    loop.add_signal_handler(signal.SIGCONT, terminal.continued)
    loop.add_signal_handler(signal.SIGWINCH, terminal.resized)
