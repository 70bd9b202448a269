"""A match that may take for ever is tried in a process of its own first, which can be ended; Python's engine cannot."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from aiovmm.console.search import Trial
from aiovmm.errors import PatternTooSlow
from aiovmm.runtime.awake import awake_timeout
from aiovmm.runtime.child import Child

__all__ = ["GOOD_TIME", "try_match"]

GOOD_TIME = 0.05
"""Seconds of processor time that the loop can wait for a match."""

_PATIENCE = 5.0  # seconds for the other process to start, and to find out, on a machine that is busy

_ANSWER = 100  # bytes at most

_PROGRAM = """
import sys, re, resource, time
flags, start, anywhere, size, fd = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_CPU, (2, 2))
data = open(fd, "rb").read()
pattern = re.compile(data[:size], flags)
began = time.process_time()
found = (pattern.search if anywhere else pattern.match)(data[size:], start)
print(int(found is not None), time.process_time() - began)
"""


async def try_match(trial: Trial) -> bool:
    """Whether it matches, and in good time. Raises PatternTooSlow if that is not known in good time."""
    pattern = trial.pattern.pattern
    output = b""
    with _file(pattern + trial.text) as fd:
        arguments = (trial.pattern.flags, trial.start, int(trial.anywhere), len(pattern), fd)
        command = (sys.executable, "-I", "-S", "-c", _PROGRAM, *map(str, arguments))
        process = Child(command, pass_fds=(fd,), stdout=True)
    try:
        with suppress(TimeoutError):
            async with awake_timeout(_PATIENCE):
                await process.wait()
            output = process.said(1, _ANSWER)
    finally:
        await process.aclose()
    found, _, seconds = output.decode().partition(" ")
    if not found or float(seconds) > GOOD_TIME:
        raise PatternTooSlow(pattern, len(trial.text) - trial.start, trial.text[trial.start :])
    return found == "1"


@contextmanager
def _file(data: bytes) -> Iterator[int]:
    """In memory, with that in it, at its beginning."""
    with open(os.memfd_create("trial", os.MFD_CLOEXEC), "w+b") as file:
        file.write(data)
        file.seek(0)
        yield file.fileno()
