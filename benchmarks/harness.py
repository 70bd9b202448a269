"""What every benchmark shares: interleaved rounds, medians with spread, a table, JSON, and what it ran on.

A benchmark has *contestants*, callables that return one measurement in the benchmark's unit. Each round runs all of them in
turn (A B A B ...), so that whatever disturbs the machine disturbs them alike; ratios are of medians of one run.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Result", "run_rounds", "where"]


@dataclass
class Result:
    """Samples by contestant; `floor` names the one that ratios refer to."""

    name: str
    unit: str
    peer: str
    samples: dict[str, list[float]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def median(self, contestant: str) -> float:
        """The median of its samples."""
        return statistics.median(self.samples[contestant])

    def rows(self) -> list[tuple[str, float, float, float, float]]:
        """(contestant, median, least, most, ratio to the peer's median)."""
        base = self.median(self.peer)
        return [
            (name, statistics.median(s), min(s), max(s), statistics.median(s) / base if base else float("nan"))
            for name, s in self.samples.items()
        ]

    def table(self) -> str:
        """For a terminal."""
        lines = [f"{self.name} ({self.unit}; median of {len(next(iter(self.samples.values())))}, interleaved)"]
        lines.append(f"  {'':32} {'median':>10} {'least':>10} {'most':>10} {'x ' + self.peer:>24}")
        for name, median, least, most, ratio in self.rows():
            lines.append(f"  {name:32} {median:10.3f} {least:10.3f} {most:10.3f} {ratio:24.2f}")
        lines += [f"  {key}: {value}" for key, value in self.notes.items()]
        return "\n".join(lines)

    def as_json(self) -> str:
        """For machines: one object, with where it ran."""
        return json.dumps(
            {
                "name": self.name,
                "unit": self.unit,
                "peer": self.peer,
                "samples": self.samples,
                "medians": {name: self.median(name) for name in self.samples},
                "notes": self.notes,
                "where": where(),
            }
        )


def where() -> dict[str, Any]:
    """Machine, kernel and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    try:
        qemu = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        qemu = ""
    return {
        "processor": model,
        "processors": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "qemu": qemu.split("\n")[0],
        "nested": "AIOVMM_KVMHOST" in os.environ,
        "load": os.getloadavg()[0],
    }


def run_rounds(result: Result, contestants: Mapping[str, Callable[[], float]], rounds: int) -> Result:
    """Fill `result` with `rounds` measurements of each contestant, in turn. Progress goes to stderr."""
    for number in range(rounds):
        for name, measure in contestants.items():
            value = measure()
            result.samples.setdefault(name, []).append(value)
            print(f"{result.name}: round {number + 1}/{rounds}: {name}: {value:.3f} {result.unit}", file=sys.stderr)
    return result
