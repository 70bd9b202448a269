"""What is made of results: a table for a terminal, one for documents, JSON for machines, a plot as SVG."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.harness import Result

__all__ = ["as_json", "markdown", "plot", "table"]

_ROW, _TOP, _LEFT, _SCALE, _RIGHT = 26, 44, 330, 420, 190  # pixels
_GOOD, _BAD, _PLAIN = "#2a7f62", "#b5483a", "#5b6b7b"


def figure(value: float) -> str:
    """Three significant digits or more, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def table(result: Result) -> str:
    """For a terminal."""
    count = len(result.samples[result.ours])
    lines = [f"{result.name} ({result.unit}; median of {count}, least and most)"]
    for name in result.samples:
        samples = result.samples[name]
        figures = "  ".join(f"{figure(v):>10}" for v in (result.median(name), min(samples), max(samples)))
        lines.append(f"  {name:26} {figures}")
    lines += [f"  {line}" for line in _verdict(result)]
    lines += [f"  {key}: {value}" for key, value in result.notes.items()]
    return "\n".join(lines)


def _verdict(result: Result) -> list[str]:
    said = []
    if result.ratio is not None:
        said.append(
            f"{result.ratio:.2f} x {result.peer} ({min(result.ratios):.2f} to {max(result.ratios):.2f} in a round)"
        )
    if result.target is not None:
        said.append(f"target: {result.target.text(result.unit)}: {'met' if result.met else 'MISSED'}")
    return ["; ".join(said)] if said else []


def as_json(results: Sequence[Result], where: dict[str, Any]) -> str:
    """One object: where it ran, and the results."""
    return json.dumps({"where": where, "results": [result.as_dict() for result in results]}, indent=1)


def markdown(results: Sequence[Result]) -> str:
    """One table for a document: a row a result, with medians and, in brackets, the ratios' spread."""
    lines = ["| | aiovmm | peer | ratio | target | |", "|---|---:|---:|---:|---|---|"]
    for result in results:
        ours = f"{figure(result.median(result.ours))} {result.unit}"
        peer = "" if result.peer is None else f"{figure(result.median(result.peer))} ({result.peer})"
        spread = f"{result.ratio:.2f} ({min(result.ratios):.2f} to {max(result.ratios):.2f})" if result.ratios else ""
        target = "" if result.target is None else result.target.text(result.unit)
        verdict = {None: "", True: "met", False: "**missed**"}[result.met]
        lines.append(f"| {result.name} | {ours} | {peer} | {spread} | {target} | {verdict} |")
    return "\n".join(lines) + "\n"


def plot(results: Sequence[Result], title: str) -> str:
    """An SVG document: for each result with a peer the ratio of the medians as a bar, that of each round as a dot, and where
    the target is. The scale is logarithmic, so that twice and half are as far from 1."""
    rows = [result for result in results if result.ratio and math.isfinite(result.ratio)]
    low, high = _bounds(rows)
    width, height = _LEFT + _SCALE + _RIGHT, _TOP + _ROW * len(rows) + 34

    def x(ratio: float) -> float:
        part = math.log(min(max(ratio, low), high) / low) / math.log(high / low)
        return round(_LEFT + _SCALE * part, 1)

    body = [f'<text x="12" y="22" font-weight="bold">{escape(title)}</text>', *_grid(low, high, x, height)]
    for index, result in enumerate(rows):
        body += _bar(result, _TOP + _ROW * index + _ROW // 2, x)
    body.append(
        f'<text x="12" y="{height - 8}" fill="{_PLAIN}" font-size="11">aiovmm : peer, medians; a dot is one round; '
        "the mark is the target</text>"
    )
    style = 'font-family="sans-serif" font-size="12" fill="#222"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" {style}>'
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="#fff"/>', *body, "</svg>"]) + "\n"


def _limit(result: Result) -> float | None:
    """The target as a ratio to the peer's median."""
    if result.target is None or result.peer is None or not result.median(result.peer):
        return None
    return result.target.limit(result.median(result.peer)) / result.median(result.peer)


def _bounds(rows: Sequence[Result]) -> tuple[float, float]:
    """Powers of two that hold everything that is drawn."""
    values = [1.0]
    for row in rows:
        values += [value for value in (row.ratio, _limit(row), *row.ratios) if value and math.isfinite(value)]
    return 2.0 ** min(-1, math.floor(math.log2(min(values)))), 2.0 ** max(1, math.ceil(math.log2(max(values))))


def _grid(low: float, high: float, x: Any, height: int) -> list[str]:
    lines = []
    for power in range(round(math.log2(low)), round(math.log2(high)) + 1):
        at = x(2.0**power)
        colour = "#888" if power == 0 else "#e3e6ea"
        lines.append(f'<line x1="{at}" y1="{_TOP - 4}" x2="{at}" y2="{height - 28}" stroke="{colour}"/>')
        lines.append(f'<text x="{at}" y="{_TOP - 8}" text-anchor="middle" font-size="10">{2.0**power:g}</text>')
    return lines


def _bar(result: Result, y: int, x: Any) -> list[str]:
    colour = _PLAIN if result.met is None else _GOOD if result.met else _BAD
    assert result.ratio is not None
    left, right = sorted((x(1.0), x(result.ratio)))
    drawn = [
        f'<text x="{_LEFT - 12}" y="{y + 4}" text-anchor="end">{escape(result.name)}</text>',
        f'<rect x="{left}" y="{y - 6}" width="{max(right - left, 1):.1f}" height="12" fill="{colour}" fill-opacity="0.55"/>',
    ]
    drawn += [f'<circle cx="{x(r)}" cy="{y}" r="2.5" fill="{colour}"/>' for r in result.ratios if math.isfinite(r)]
    limit = _limit(result)
    if limit:
        drawn.append(
            f'<line x1="{x(limit)}" y1="{y - 10}" x2="{x(limit)}" y2="{y + 10}" stroke="#222" stroke-width="2"/>'
        )
    said = f"{result.ratio:.2f} x {result.peer}"
    drawn.append(f'<text x="{_LEFT + _SCALE + 12}" y="{y + 4}" fill="{colour}">{escape(said)}</text>')
    return drawn
