"""Paths that a confined command may use beside those that its configuration names."""

from __future__ import annotations

from pathlib import Path

from aiovmm.config.kinds import dataclass
from aiovmm.errors import ConfigError

__all__ = ["LandlockRuleConfig"]

_HINT = "r to read, w to write and to make and remove what is in it, or rw"


@dataclass(frozen=True, kw_only=True)
class LandlockRuleConfig:
    """`access` ("r", "w" or "rw") beneath `path`."""

    path: Path
    access: str

    def __post_init__(self) -> None:
        if not 1 <= len(self.access) <= 2 or set(self.access) - set("rw"):
            raise ConfigError("landlock_rules.access", f"{self.access!r} is no access", _HINT)
