"""Interrupt lines as devices hold them. A device knows neither vectors, nor chips, nor KVM."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

__all__ = ["IrqLine", "LevelLine", "RecordingLine"]


@runtime_checkable
class IrqLine(Protocol):
    """An edge: a message-signalled interrupt, or an edge-triggered pin."""

    def pulse(self) -> None:
        """Raise one interrupt. Never blocks; a masked line keeps it pending or drops it, as its controller does."""


@runtime_checkable
class LevelLine(Protocol):
    """A pin with a level, for level-triggered interrupts (PCI INTx, ACPI GED)."""

    def set_level(self, asserted: bool) -> None:
        """Assert or release the line. Idempotent."""


class RecordingLine:
    """Both kinds of line in one, for tests: counts edges and remembers the level."""

    def __init__(self) -> None:
        self.pulses = 0
        self.level = False

    def pulse(self) -> None:
        """Count one edge."""
        self.pulses += 1

    def set_level(self, asserted: bool) -> None:
        """Remember the level; a rising one counts as an edge."""
        if asserted and not self.level:
            self.pulses += 1
        self.level = asserted
