"""What the command says of its own, on standard error. What cannot be said holds nobody up."""

from __future__ import annotations

import sys
from contextlib import suppress

__all__ = ["say"]


def say(text: str, *, below: bool = False) -> None:
    """One line for the person who started it, whatever is in the names that it quotes; `below` what a guest left of one."""
    line = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    if sys.stderr is not None:
        with suppress(OSError, ValueError):  # full, closed, or nobody reads it
            print("\r\n" * below + f"aiovmm: {line}", file=sys.stderr, flush=True)
