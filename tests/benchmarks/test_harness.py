"""The statistics of a benchmark: who is compared with whom, and what meets a target."""

from __future__ import annotations

import math

import pytest

from benchmarks.harness import Options, Result, Target, run_rounds


def row(target: Target | None = None, **samples: list[float]) -> Result:
    peers = tuple(name for name in samples if name != "ours")
    return Result("row", "us", "ours", peers, target, dict(samples))


def test_contestants_are_measured_in_turn() -> None:
    calls: list[str] = []

    def contestant(name: str, value: float) -> float:
        calls.append(name)
        return value

    contestants = {"a": lambda: contestant("a", 1.0), "b": lambda: contestant("b", 2.0)}
    result = run_rounds(Result("row", "s", "a", ("b",)), contestants, 3)
    assert "".join(calls) == "ababab"
    assert result.samples == {"a": [1.0] * 3, "b": [2.0] * 3}
    assert result.ratio == 0.5


def test_ratio_is_of_medians_and_its_spread_of_rounds() -> None:
    result = row(ours=[1.0, 9.0, 2.0], peer=[4.0, 4.0, 8.0])
    assert result.ratio == 0.5
    assert result.ratios == [0.25, 2.25, 0.25]


def test_the_best_peer_counts() -> None:
    assert row(Target(0.8), ours=[8.0], slow=[20.0], fast=[10.0]).peer == "fast"
    assert row(Target(1.0, most=False), ours=[8.0], slow=[10.0], fast=[20.0]).peer == "fast"


@pytest.mark.parametrize(
    ("target", "ours", "met", "text"),
    [
        (Target(1.15), 11.5, True, "at most 1.15 x"),
        (Target(1.15), 11.6, False, "at most 1.15 x"),
        (Target(2.0, 15.0), 35.0, True, "at most 2 x + 15 us"),
        (Target(2.0, 15.0), 35.1, False, "at most 2 x + 15 us"),
        (Target(0.8, most=False), 8.0, True, "at least 0.8 x"),
        (Target(0.8, most=False), 7.9, False, "at least 0.8 x"),
        (Target(plus=1.0), 0.9, True, "at most 1 us"),
        (Target(plus=1.0), 1.1, False, "at most 1 us"),
    ],
)
def test_a_target_is_a_limit_relative_to_the_peer(target: Target, ours: float, met: bool, text: str) -> None:
    result = row(target, ours=[ours], peer=[10.0])
    assert result.met is met
    assert target.text("us") == text


def test_without_peer_or_target_there_is_no_verdict() -> None:
    result = row(ours=[1.0])
    assert (result.peer, result.ratio, result.ratios, result.met) == (None, None, [], None)
    assert row(Target(plus=2.0), ours=[1.0]).met is True


def test_a_peer_that_takes_no_time_gives_no_number() -> None:
    ratio = row(ours=[1.0], peer=[0.0]).ratio
    assert ratio is not None
    assert math.isnan(ratio)


def test_results_survive_json() -> None:
    result = row(Target(2.0, 15.0), ours=[30.0, 31.0], peer=[10.0, 11.0])
    result.notes["exits"] = "7"
    again = Result.from_dict(result.as_dict())
    assert again == result
    assert again.as_dict() == result.as_dict()


def test_rows_are_chosen_by_parts_of_their_names() -> None:
    assert Options().wants("TCP, guest to host")
    assert Options(only=("TCP", "ping")).wants("ping")
    assert not Options(only=("TCP",)).wants("ping")
