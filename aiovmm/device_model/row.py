"""One row of the device model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["DeviceRow"]


@dataclass(frozen=True)
class DeviceRow:
    """`state`: whether it is there. `default`: what a VM has that says nothing. `switch`: the option that says otherwise.

    `features` are the bits that a guest's driver can be offered, by their names in the specification, ring features left
    out; which of them are depends on back end and options. Empty texts mean: nothing of that kind.
    """

    name: str
    built_in: bool
    default: str
    switch: str
    features: tuple[str, ...] = ()
    back_ends: str = ""
    limits: str = ""

    @property
    def state(self) -> str:
        """`built_in` in words."""
        return "built in" if self.built_in else "not in this version"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "features": list(self.features), "state": self.state}
