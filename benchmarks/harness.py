"""The core of every benchmark: interleaved rounds, medians with spread, the ratio to a peer, and the target that it has to meet.

A benchmark is a module with `run(options)`, which gives one `Result` for each row of its table. Contestants are measured in turn
(A B A B ...), so that whatever disturbs the machine disturbs them alike. Ratios are of medians of one run; their spread is that
of the ratios within each round.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ROUNDS", "Options", "Result", "Target", "run_rounds"]

ROUNDS = 5
"""The least number of rounds whose median is worth a comparison."""


@dataclass(frozen=True)
class Options:
    """What the command line says. `quick` asks for a short version, whose figures only show that all works."""

    rounds: int = ROUNDS
    quick: bool = False
    release: str = "6.1"
    only: tuple[str, ...] = ()
    profile: bool = False

    def wants(self, row: str) -> bool:
        """Whether a row is to be measured: all are, unless `only` has parts of names."""
        return not self.only or any(part in row for part in self.only)

    def pick(self, usual: Any, quick: Any) -> Any:
        """One of the two, by `quick`."""
        return quick if self.quick else usual


@dataclass(frozen=True)
class Target:
    """The limit of our median: `times` the peer's, and `plus` more in the result's unit; one that is not `most` is a least."""

    times: float = 0.0
    plus: float = 0.0
    most: bool = True

    def limit(self, peer: float) -> float:
        """In the result's unit."""
        return self.times * peer + self.plus

    def met(self, ours: float, peer: float) -> bool:
        """Whether it is."""
        return ours <= self.limit(peer) if self.most else ours >= self.limit(peer)

    def text(self, unit: str) -> str:
        """Like `at most 1.15 x` or `at most 2 x + 15 us`."""
        parts = [f"{self.times:g} x"] if self.times else []
        parts += [f"{self.plus:g} {unit}"] if self.plus else []
        return f"at {'most' if self.most else 'least'} {' + '.join(parts)}"


@dataclass
class Result:
    """One row. `samples` by contestant, `ours` among them; `peers` are those that it is compared with: with the best of them."""

    name: str
    unit: str
    ours: str = "aiovmm"
    peers: tuple[str, ...] = ()
    target: Target | None = None
    samples: dict[str, list[float]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def add(self, contestant: str, value: float) -> None:
        """One more sample."""
        self.samples.setdefault(contestant, []).append(value)

    def median(self, contestant: str) -> float:
        """The median of its samples."""
        return statistics.median(self.samples[contestant])

    @property
    def peer(self) -> str | None:
        """The best of the peers: the least where less is better."""
        medians = {name: self.median(name) for name in self.peers if name in self.samples}
        if not medians:
            return None
        best = min if self.target is None or self.target.most else max
        return best(medians, key=lambda name: medians[name])

    @property
    def ratio(self) -> float | None:
        """Our median by the peer's."""
        return None if self.peer is None else _divided(self.median(self.ours), self.median(self.peer))

    @property
    def ratios(self) -> list[float]:
        """The same of each round."""
        if self.peer is None:
            return []
        pairs = zip(self.samples[self.ours], self.samples[self.peer], strict=False)
        return [_divided(ours, peer) for ours, peer in pairs]

    @property
    def met(self) -> bool | None:
        """Whether the target is; None if there is none."""
        if self.target is None:
            return None
        return self.target.met(self.median(self.ours), 0.0 if self.peer is None else self.median(self.peer))

    def as_dict(self) -> dict[str, Any]:
        """Plain data, with what is computed from it."""
        target = None if self.target is None else {**vars(self.target), "text": self.target.text(self.unit)}
        return {
            "name": self.name,
            "unit": self.unit,
            "ours": self.ours,
            "peers": list(self.peers),
            "peer": self.peer,
            "samples": self.samples,
            "medians": {name: self.median(name) for name in self.samples},
            "ratio": self.ratio,
            "ratios": self.ratios,
            "target": target,
            "met": self.met,
            "notes": self.notes,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Result:
        """The inverse of `as_dict`."""
        target = data["target"]
        limits = None if target is None else Target(target["times"], target["plus"], target["most"])
        samples, notes = dict(data["samples"]), dict(data["notes"])
        return cls(data["name"], data["unit"], data["ours"], tuple(data["peers"]), limits, samples, notes)


def _divided(a: float, b: float) -> float:
    return a / b if b else float("nan")


def run_rounds(result: Result, contestants: Mapping[str, Callable[[], float]], rounds: int) -> Result:
    """Fill `result` with `rounds` measurements of each contestant, in turn. Progress goes to stderr."""
    for number in range(rounds):
        for name, measure in contestants.items():
            value = measure()
            result.add(name, value)
            progress(result, number, rounds, name, value)
    return result


def progress(result: Result, number: int, rounds: int, name: str, value: float) -> None:
    """One line on stderr for one sample."""
    print(f"{result.name}: round {number + 1}/{rounds}: {name}: {value:.3f} {result.unit}", file=sys.stderr, flush=True)
