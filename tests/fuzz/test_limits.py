"""Every parser that has a target here, with each number of its seeds at its limits: 0, -1, 2**31, 2**32, 2**63. What a target's
`run` holds, it holds of these, too."""

from __future__ import annotations

import pytest

from tests.at_limits import everywhere
from tests.conftest import THOROUGH
from tests.fuzz.targets import PYTHON, load

TEXTS = {"options", "search", "terminal"}
"""Numbers are words there."""
MOST = 400
"""Of a longer seed, such as a kernel, that much: its header. Their own tests draw from limits in all fields."""
CASES = 20_000 if THOROUGH else 1_500


@pytest.mark.parametrize("name", sorted(set(PYTHON) - TEXTS))
def test_numbers_at_their_limits(name: str) -> None:
    target = load(name)
    cases = [
        one + seed[MOST:]
        for seed in target.SEEDS
        for one in everywhere(seed[:MOST], orders=("little", "big"))
        if one[:1] == seed[:1]  # it says whose seed it is
    ]
    step = -(-len(cases) // CASES) | 1  # of each kind some: widths, limits and orders repeat
    for case in cases[::step]:
        target.run(case)
