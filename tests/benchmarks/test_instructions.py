"""What a request and a start cost in instructions, which repeat: more than a fifth above what was counted is a regression."""

from __future__ import annotations

import sys

import pytest

from benchmarks.harness import Options
from benchmarks.instructions import LIMITS, STARTS, run


@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the limits are CPython 3.11's")
def test_requests_and_starts_stay_within_their_limits() -> None:
    results = {result.name: result for result in run(Options())}
    assert len(results) == len(LIMITS) + len(STARTS)
    over = {name: (result.median("aiovmm"), result.target) for name, result in results.items() if not result.met}
    assert not over
    assert all(result.median("aiovmm") > 0 for result in results.values())
