"""What a VM has done and what it costs, as plain values; and how late the event loop is."""

from __future__ import annotations

from aiovmm.stats.gather import gather
from aiovmm.stats.values import ConsoleStats, DeviceStats, LoopStats, VMStats

__all__ = ["ConsoleStats", "DeviceStats", "LoopStats", "VMStats", "gather"]
