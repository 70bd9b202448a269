"""Which signals a command takes for itself."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

__all__ = ["heed"]


def heed(*numbers: signal.Signals, by: Callable[[signal.Signals], object]) -> None:
    """Have the running loop call `by` with each that comes. SIGHUP stays ignored for whoever was started so, by `nohup`: it is to
    outlive its terminal."""
    loop = asyncio.get_running_loop()
    for number in numbers:
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, by, number)
