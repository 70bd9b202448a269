"""The table as text, for terminals and for docs/devices.md."""

from __future__ import annotations

from collections.abc import Sequence

from aiovmm.device_model.row import DeviceRow

__all__ = ["as_markdown", "as_text"]

_HEAD = ("Device", "State", "Default", "Switch")


def as_text(rows: Sequence[DeviceRow]) -> str:
    """Columns for a terminal; features, back ends and limits on lines of their own."""
    widths = [max(len(row.name) for row in rows), max(len(row.state) for row in rows)]
    lines = []
    for row in rows:
        lines.append(f"{row.name:{widths[0]}}  {row.state:{widths[1]}}  {row.default}; {row.switch}")
        lines += [f"{'':{widths[0]}}  {what}: {text}" for what, text in _details(row)]
    return "\n".join(lines) + "\n"


def as_markdown(rows: Sequence[DeviceRow]) -> str:
    """A table of states and switches, and a section for what else is to be said of each device."""
    lines = [f"| {' | '.join(_HEAD)} |", "|---" * len(_HEAD) + "|"]
    lines += [f"| {row.name} | {row.state} | {row.default} | {_code(row.switch)} |" for row in rows]
    for row in rows:
        details = _details(row)
        if details:
            lines += ["", f"### {row.name}"]
            lines += [f"- {what}: {text}" for what, text in details]
    return "\n".join(lines) + "\n"


def _details(row: DeviceRow) -> list[tuple[str, str]]:
    pairs = (("features", ", ".join(row.features)), ("back ends", row.back_ends), ("limits", row.limits))
    return [(what, text) for what, text in pairs if text]


def _code(switch: str) -> str:
    return f"`{switch}`" if switch.startswith("--") else switch
