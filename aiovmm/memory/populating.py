"""Memory that is there before it is touched."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from aiovmm.errors import StateError
from aiovmm.native.mapping import GuestMapping
from aiovmm.runtime.threads import Thread

_MOST_THREADS = 16
_PIECE = 256 << 20  # bytes, between which somebody may say that memory is not wanted any more


def populate(wanted: Callable[[], bool], mapping: GuestMapping, start: int, size: int) -> None:
    """In pieces, and where there are several by as many threads as there are processors for this process: most of the time
    goes into clearing pages, which each does for itself."""
    pieces = iter(range(start, start + size, _PIECE))
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for at in pieces:  # one step of a range's iterator is not divided between threads
                if errors:
                    return
                if not wanted():
                    raise StateError("guest memory is not wanted any more")
                mapping.populate(at, min(_PIECE, start + size - at))
        except BaseException as exc:
            errors.append(exc)

    helpers = min(len(os.sched_getaffinity(0)), _MOST_THREADS, -(-size // _PIECE)) - 1
    threads = [Thread(work, name="prefault") for _ in range(helpers)]
    with contextlib.suppress(RuntimeError):  # a host without room for threads: slow is better than never
        for thread in threads:
            thread.start()
    work()
    for thread in threads:
        if thread.ident is not None:
            thread.join()
    if errors:
        raise errors[0]
