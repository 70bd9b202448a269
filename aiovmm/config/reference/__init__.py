"""Every option and key of the reference monitor (cloud-hypervisor 53) against this one's: what docs/reference.md and the reason
of a refusal are made of. Imported by who is refused something, or asks.

`python -m aiovmm.config.reference` prints the tables of docs/reference.md.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from typing import NamedTuple

from aiovmm.config.reference import device_keys, machine_keys, whole_options

__all__ = ["Row", "Verdict", "as_markdown", "asks_for_nothing", "rows", "why_not"]


class Verdict(enum.Enum):
    """What becomes of an option."""

    SAME = "same"
    DIFFERS = "differs"  # taken, and different on purpose: the note says how
    REFUSED = "refused"  # by name: the note says why
    OURS = "ours"  # the reference has none such


class Row(NamedTuple):
    """`key` is empty for an option as a whole. `same`: values of what is refused that ask for what is here anyway."""

    option: str
    key: str
    verdict: Verdict
    note: str
    same: tuple[str, ...] = ()


@cache
def rows() -> tuple[Row, ...]:
    """All of them, in the order of the document."""
    texts = (machine_keys.TABLE, device_keys.TABLE, whole_options.TABLE)
    return tuple(row for text in texts for row in _parse(text))


def _parse(text: str) -> Iterator[Row]:
    for line in text.strip().splitlines():
        name, verdict, note, *same = (part.strip() for part in line.split("|"))
        option, _, keys = name.partition(" ")
        for key in keys.split() or [""]:
            yield Row(option, key, Verdict(verdict), note, tuple(" ".join(same).split()))


def why_not(option: str, key: str = "") -> str:
    """Why an option or a key of the reference is refused; empty if it is none."""
    return "" if (row := _refused(option, key)) is None else row.note


def asks_for_nothing(option: str, key: str, value: str) -> bool:
    """Whether that is refused in general, and with this value says what is so here anyway: `mergeable=off`, or nothing."""
    row = _refused(option, key)
    return row is not None and ((not value and bool(key)) or value.lower() in row.same)


def _refused(option: str, key: str) -> Row | None:
    return next((r for r in rows() if (r.option, r.key, r.verdict) == (option, key, Verdict.REFUSED)), None)


def as_markdown() -> str:
    """The table of docs/reference.md: a line for keys of an option of which the same is to be said."""
    lines = ["| Option | Keys | Here | |", "|---|---|---|---|"]
    for (option, _, verdict, note, same), alike in groupby(rows(), key=lambda row: row._replace(key="")):
        keys = ", ".join(f"`{row.key}`" for row in alike if row.key)
        taken = f"; taken: {', '.join(f'`{value}`' for value in same)}" if same else ""
        lines.append(f"| `{option}` | {keys} | {verdict.value} | {note}{taken} |")
    return "\n".join(lines) + "\n"
