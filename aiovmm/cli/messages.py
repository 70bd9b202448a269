"""What the command says of its own, on standard error. What cannot be said holds nobody up."""

from __future__ import annotations

import sys
from contextlib import suppress

__all__ = ["say"]


def say(text: str, *, below: bool = False) -> None:
    """One line for the person who started it; `below` what a guest left of one."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):  # full, closed, or nobody reads it
            print("\r\n" * below + f"aiovmm: {text}", file=sys.stderr, flush=True)
