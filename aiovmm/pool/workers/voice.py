"""What a worker says on its standard output and error: lines of this program's log, for it may be a guest's, and is to have
neither the program's terminal (which it could read from, and command) nor a file that it could fill."""

from __future__ import annotations

import time

from aiovmm.runtime.log import Log
from aiovmm.runtime.quota import Quota

__all__ = ["Voice"]

_LONGEST = 4096  # bytes of a line
_AT_ONCE = 64  # lines of a piece that are looked at
_LINES = 256  # at once, as of a traceback; then one a minute


class Voice:
    """`hear` takes it as it comes, `end` what is left."""

    def __init__(self, worker: str) -> None:
        self._log = Log(worker=worker)
        self._quota = Quota(_LINES)
        self._rest = b""
        self._untold = 0

    def hear(self, part: bytes) -> None:
        """In pieces of any size."""
        *lines, rest = (self._rest + part).split(b"\n", _AT_ONCE)
        for line in lines:
            self._tell(line)
        skipped, _, rest = rest.rpartition(b"\n")
        self._untold += skipped.count(b"\n") + bool(skipped)
        self._rest = rest[:_LONGEST]

    def end(self) -> None:
        """It says no more."""
        rest, self._rest = self._rest, b""
        self._tell(rest)

    def _tell(self, line: bytes) -> None:
        text = line[:_LONGEST].decode(errors="backslashreplace").rstrip()
        if not text or (untold := self._quota.take(time.monotonic())) is None:
            return
        untold, self._untold = untold + self._untold, 0
        more = f" ({untold} lines before it are not shown)" if untold else ""
        self._log.warning(f"a worker says: {text}{more}")
