"""Many guests with one life each: some are kept ready, each is used once, and whatever dies is replaced."""

from __future__ import annotations

from aiovmm.pool.events import PoolEvent, PoolEventKind, PoolStats
from aiovmm.pool.pool import Pool
from aiovmm.pool.workers.plain import WorkerLost

__all__ = ["Pool", "PoolEvent", "PoolEventKind", "PoolStats", "WorkerLost"]
