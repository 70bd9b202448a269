"""A match that may take for ever is tried in a process of its own first, which can be ended; Python's engine cannot."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

from aiovmm.console.search import Trial
from aiovmm.errors import PatternTooSlow

__all__ = ["GOOD_TIME", "try_match"]

GOOD_TIME = 0.05
"""Seconds of processor time that the loop can wait for a match."""

_PATIENCE = 5.0  # seconds for the other process to start, and to find out, on a machine that is busy

_PROGRAM = """
import sys, re, resource, time
flags, start, anywhere, size = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_CPU, (2, 2))
data = sys.stdin.buffer.read()
pattern = re.compile(data[:size], flags)
began = time.process_time()
found = (pattern.search if anywhere else pattern.match)(data[size:], start)
print(int(found is not None), time.process_time() - began)
"""


async def try_match(trial: Trial) -> bool:
    """Whether it matches, and in good time. Raises PatternTooSlow if that is not known in good time."""
    pattern = trial.pattern.pattern
    arguments = (trial.pattern.flags, trial.start, int(trial.anywhere), len(pattern))
    command = (sys.executable, "-I", "-S", "-c", _PROGRAM, *map(str, arguments))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL)
    try:
        async with asyncio.timeout(_PATIENCE):
            output, _ = await process.communicate(pattern + trial.text)
    except TimeoutError:
        output = b""
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await asyncio.shield(process.wait())
    found, _, seconds = output.decode().partition(" ")
    if not found or float(seconds) > GOOD_TIME:
        raise PatternTooSlow(pattern, len(trial.text) - trial.start, trial.text[trial.start :])
    return found == "1"
