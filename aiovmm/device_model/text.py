"""The table as text, for terminals and for docs/devices.md."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from aiovmm.device_model.row import DeviceRow

__all__ = ["as_markdown", "as_text"]

_HEAD = ("Device", "State", "Default", "Switch")


def as_text(rows: Sequence[DeviceRow]) -> str:
    """Columns for a terminal; features, back ends and limits on lines of their own. More than one architecture have headings."""
    groups = _by_architecture(rows)
    tables = [_columns(group) for _, group in groups]
    if len(groups) == 1:
        return tables[0]
    return "\n".join(f"On {title}:\n\n{table}" for (title, _), table in zip(groups, tables, strict=True))


def as_markdown(rows: Sequence[DeviceRow]) -> str:
    """For each architecture a table of states and switches; then a section for what else is to be said of each device, which is
    one for all if it is the same."""
    lines: list[str] = []
    for title, group in _by_architecture(rows):
        lines += [f"## On {title}", "", f"| {' | '.join(_HEAD)} |", "|---" * len(_HEAD) + "|"]
        lines += [f"| {row.name} | {row.state} | {row.default} | {_code(row.switch)} |" for row in group]
        lines.append("")
    lines.append("## Features and limits")
    for name in dict.fromkeys(row.name for row in rows):
        lines += _sections([row for row in rows if row.name == name])
    return "\n".join(lines) + "\n"


def _by_architecture(rows: Sequence[DeviceRow]) -> list[tuple[str, list[DeviceRow]]]:
    return [(title, list(group)) for title, group in groupby(rows, lambda row: row.architecture)]


def _columns(rows: Sequence[DeviceRow]) -> str:
    widths = [max(len(row.name) for row in rows), max(len(row.state) for row in rows)]
    lines = []
    for row in rows:
        how = f"{row.default}; {row.switch}" if row.exists else row.default
        lines.append(f"{row.name:{widths[0]}}  {row.state:{widths[1]}}  {how}")
        lines += [f"{'':{widths[0]}}  {what}: {text}" for what, text in _details(row)]
    return "\n".join(lines) + "\n"


def _sections(rows: Sequence[DeviceRow]) -> list[str]:
    """Of one device on all architectures."""
    same = len({tuple(_details(row)) for row in rows}) == 1
    lines: list[str] = []
    for row in rows[:1] if same else rows:
        if details := _details(row):
            lines += ["", f"### {row.name}" if same else f"### {row.name} on {row.architecture}"]
            lines += [f"- {what}: {text}" for what, text in details]
    return lines


def _details(row: DeviceRow) -> list[tuple[str, str]]:
    pairs = (("features", ", ".join(row.features)), ("back ends", row.back_ends), ("limits", row.limits))
    return [(what, text) for what, text in pairs if text]


def _code(switch: str) -> str:
    return f"`{switch}`" if switch.startswith("--") else switch
