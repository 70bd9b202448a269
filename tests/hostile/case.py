"""One thing that a hostile driver does."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.hostile.rarer import RARER
from tests.hostile.rig import Rig
from tests.hostile.targets import USUAL

__all__ = ["ANY", "Case", "Verdict", "for_all"]


class Verdict(enum.Enum):
    """What the specification has the device do."""

    SERVES = "serves on"  # it was legal, or is to be ignored
    BREAKS = "needs a reset"  # VIRTIO 1.2 2.1.2
    DEAD = "does nothing"  # it was not, or no longer, told to be live
    EITHER = "serves on or needs a reset"  # undefined: all that matters is that a reset mends it


ANY = (*USUAL, *RARER)


@dataclass(frozen=True)
class Case:
    """`does` what it does to the device `target`, which is live when it begins."""

    category: str
    name: str
    target: str
    does: Callable[[Rig], Awaitable[None]]
    verdict: Verdict

    @property
    def id(self) -> str:
        """For the report."""
        return f"{self.category}-{self.name}-{self.target}".replace(" ", "_")


def for_all(
    category: str,
    things: dict[str, Callable[[Rig], Awaitable[None]]],
    verdict: Verdict,
    targets: tuple[str, ...] = ANY,
) -> list[Case]:
    """A case of each thing for each target."""
    return [Case(category, name, target, does, verdict) for name, does in things.items() for target in targets]
