"""No test may leave a file descriptor behind."""

from __future__ import annotations

import asyncio
import gc
import os
import re
from collections import Counter
from collections.abc import AsyncIterator

import pytest


def open_fds() -> Counter[str]:
    """What the fds of this process are, and how many of each; without inode numbers, for uvloop makes its own anew."""
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        try:
            found[re.sub(r"\[\d+\]", "", os.readlink(f"/proc/self/fd/{name}"))] += 1
        except FileNotFoundError:  # the directory's own
            continue
    return found


@pytest.fixture(autouse=True)
async def no_fd_left() -> AsyncIterator[None]:
    """Compares before and after, in the loop that the test runs in."""
    gc.collect()
    before = open_fds()
    if type(asyncio.get_running_loop()).__module__.startswith("uvloop"):
        before["/dev/null"] += 1  # which a loop has from its first subprocess on
    yield
    await asyncio.sleep(0)
    gc.collect()
    assert open_fds() - before == Counter()
