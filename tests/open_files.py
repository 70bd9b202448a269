"""How many files this process has open, for who looks whether any stay."""

from __future__ import annotations

import gc
import os

__all__ = ["descriptors"]


def descriptors() -> int:
    """Those alone that somebody still has: what earlier tests dropped in circles would go at any time. Ask for no more than
    there were: also a thread of an earlier test may just be closing one."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))
