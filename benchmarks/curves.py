"""Curves of what was measured of different numbers of guests: of rows called `N guests: what`, a plot each in one SVG document.

Both scales are logarithmic: a line that rises by one decade in one is what grows with the number, a level one is what does not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from xml.sax.saxutils import escape

from benchmarks.harness import Result
from benchmarks.report import figure

__all__ = ["curves", "plot"]

_ROW = re.compile(r"^([\d,]+) guests: (.*)$")
_WIDTH, _HEIGHT, _COLUMNS = 400, 230, 2  # pixels of a plot, and how many stand side by side
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 22, 40, 34
_LINE, _TARGET, _GRID = "#2a7f62", "#b5483a", "#e3e6ea"


def curves(results: Sequence[Result]) -> dict[str, list[tuple[int, Result]]]:
    """By what was measured: (guests, row), in the order of their numbers. Only what was measured of several numbers."""
    found: dict[str, list[tuple[int, Result]]] = {}
    for result in results:
        if match := _ROW.match(result.name):
            found.setdefault(match[2], []).append((int(match[1].replace(",", "")), result))
    return {what: sorted(rows, key=lambda row: row[0]) for what, rows in found.items() if len(rows) > 1}


def plot(results: Sequence[Result], title: str) -> str:
    """An SVG document with all curves: medians as a line with dots, the target as a broken one."""
    found = curves(results)
    lines = -(-len(found) // _COLUMNS)
    width, height = _WIDTH * _COLUMNS, _HEIGHT * lines + 30
    style = 'font-family="sans-serif" font-size="11" fill="#222"'
    body = [f'<text x="12" y="20" font-size="13" font-weight="bold">{escape(title)}</text>']
    for index, (what, rows) in enumerate(found.items()):
        left, top = index % _COLUMNS * _WIDTH, index // _COLUMNS * _HEIGHT + 30
        body += [f'<g transform="translate({left} {top})">', *_curve(what, rows), "</g>"]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" {style}>'
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="#fff"/>', *body, "</svg>"]) + "\n"


class _Scale:
    """From a value to a pixel, in decades that hold all values."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        logs = [math.log10(value) for value in values if value > 0] or [0.0]
        self.low, self.high = math.floor(min(logs)), math.ceil(max(logs))
        self.high += self.high == self.low
        self._start, self._step = start, (end - start) / (self.high - self.low)

    def at(self, value: float) -> float:
        log = math.log10(value) if value > 0 else self.low
        return round(self._start + self._step * (log - self.low), 1)

    @property
    def decades(self) -> list[float]:
        return [10.0**power for power in range(self.low, self.high + 1)]


def _curve(what: str, rows: Sequence[tuple[int, Result]]) -> list[str]:
    first = rows[0][1]
    medians = [(count, result.median(result.ours)) for count, result in rows]
    limit = first.target.limit(0.0) if first.target is not None else 0.0
    x = _Scale([count for count, _ in medians], _LEFT, _WIDTH - _RIGHT)
    y = _Scale([*(value for _, value in medians), limit], _HEIGHT - _BOTTOM, _TOP)
    drawn = [f'<text x="{_LEFT}" y="{_TOP - 12}">{escape(f"{what} ({first.unit})")}</text>']
    for count in x.decades:
        drawn += [_line(x.at(count), _TOP, x.at(count), _HEIGHT - _BOTTOM, _GRID)]
        drawn += [f'<text x="{x.at(count)}" y="{_HEIGHT - _BOTTOM + 15}" text-anchor="middle">{count:,.0f}</text>']
    for value in y.decades:
        drawn += [_line(_LEFT, y.at(value), _WIDTH - _RIGHT, y.at(value), _GRID)]
        drawn += [f'<text x="{_LEFT - 6}" y="{y.at(value) + 4}" text-anchor="end">{figure(value)}</text>']
    if limit > 0:
        drawn += [_line(_LEFT, y.at(limit), _WIDTH - _RIGHT, y.at(limit), _TARGET, 'stroke-dasharray="5 4"')]
    points = " ".join(f"{x.at(count)},{y.at(value)}" for count, value in medians)
    drawn += [f'<polyline points="{points}" fill="none" stroke="{_LINE}" stroke-width="2"/>']
    for count, value in medians:
        drawn += [f'<circle cx="{x.at(count)}" cy="{y.at(value)}" r="3" fill="{_LINE}"/>']
        drawn += [
            f'<text x="{x.at(count)}" y="{y.at(value) - 7}" text-anchor="middle" fill="{_LINE}">{figure(value)}</text>'
        ]
    return drawn


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}" {more}/>'
