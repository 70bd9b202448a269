"""What a pool tells of itself."""

from __future__ import annotations

import enum

from aiovmm.runtime.dataclass import dataclass

__all__ = ["PoolEvent", "PoolEventKind", "PoolStats"]


class PoolEventKind(enum.Enum):
    """What can happen to a guest of a pool."""

    READY = "ready"  # it was started, and waits for a user or has one
    ACQUIRED = "acquired"
    RELEASED = "released"  # its user is done with it
    DIED = "died"  # while it waited for a user
    FAILED = "failed"  # it could not be started, or not be taken down
    GONE = "gone"
    WORKER_READY = "worker-ready"  # a worker process can have guests
    WORKER_DIED = "worker-died"  # with all its guests; another takes its place


@dataclass(frozen=True)
class PoolEvent:
    """`vm` is the guest's name, `time` seconds since the epoch; `error` what it failed with. Of a
    worker process `worker` is its number, from 0, and `vm` is ""."""

    kind: PoolEventKind
    vm: str
    time: float
    detail: str = ""
    error: BaseException | None = None
    worker: int | None = None


@dataclass(frozen=True)
class PoolStats:
    """How many guests there are now in each state, how many callers wait for one, and how many there were in all."""

    starting: int
    warm: int
    in_use: int
    leaving: int
    waiting: int
    made: int
    died: int
    failed: int
