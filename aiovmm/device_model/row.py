"""One row of the device model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["DeviceRow", "no_such"]


@dataclass(frozen=True)
class DeviceRow:
    """`state`: whether it is there. `default`: what a VM has that says nothing. `switch`: the option that says otherwise.

    `features` are the bits that a guest's driver can be offered, by their names in the specification, ring features left
    out; which of them are depends on back end and options. Empty texts mean: nothing of that kind. `exists`: guests of this
    `architecture` can have such a device; else `default` says what they have instead.
    """

    name: str
    built_in: bool
    default: str
    switch: str
    features: tuple[str, ...] = ()
    back_ends: str = ""
    limits: str = ""
    exists: bool = True
    architecture: str = ""

    @property
    def state(self) -> str:
        """`built_in` in words."""
        if not self.exists:
            return f"not on {self.architecture}"
        return "built in" if self.built_in else "not in this version"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "features": list(self.features), "state": self.state}


def no_such(name: str, instead: str) -> DeviceRow:
    """The row of a device that an architecture does not have."""
    return DeviceRow(name, False, f"instead: {instead}", "none", exists=False)
