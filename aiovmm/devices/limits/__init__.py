"""Rate limits: how many requests and bytes a disk or a network card may move, as token buckets with the reference's keys."""

from __future__ import annotations

from aiovmm.devices.limits.limiter import Gate, Limiter

__all__ = ["Gate", "Limiter"]
