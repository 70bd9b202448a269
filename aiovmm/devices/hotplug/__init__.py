"""What a guest is told by as parts of its machine come and go: the registers that its ACPI tables describe."""

from __future__ import annotations

__all__: list[str] = []
