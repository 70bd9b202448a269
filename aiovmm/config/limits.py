"""What a guest may at most: exits, and time."""

from __future__ import annotations

import math
from collections.abc import Mapping

from aiovmm.config.kinds import dataclass
from aiovmm.errors import ConfigError
from aiovmm.runtime.dataclass import field_types, replace

__all__ = ["LimitsConfig"]

_MOST = 10_000_000
_LONGEST = 1e9  # seconds, thirty years


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """`exits`: at most so many exits to this process a second, of all vCPUs together; one that would make more stands still until
    it may. `lifetime`: seconds from its first start, after which it is ended (ExitReason.LIFETIME). `idle`: the same for seconds
    in a row in which it neither computed, for more than a twentieth of a processor, nor got or gave a byte on a console or a
    chain on a queue (ExitReason.IDLE). None is no limit.
    """

    exits: int | None = None
    lifetime: float | None = None
    idle: float | None = None

    def changed(self, changes: Mapping[str, float | None]) -> LimitsConfig:
        """With some of them as `changes` say, by name. Raises ConfigError."""
        if unknown := [name for name in changes if name not in field_types(self)]:
            raise ConfigError(f"limits.{unknown[0]}", "there is no such limit", ", ".join(field_types(self)))
        return replace(self, **changes)

    def __post_init__(self) -> None:
        if self.exits is not None and not 1 <= self.exits <= _MOST:
            raise ConfigError("limits.exits", f"{self.exits} is not in 1..{_MOST} a second")
        for name in ("lifetime", "idle"):
            seconds = getattr(self, name)
            if seconds is not None and not (math.isfinite(seconds) and 0 < seconds <= _LONGEST):
                raise ConfigError(f"limits.{name}", f"{seconds:g} is no number of seconds", "say more than 0")
