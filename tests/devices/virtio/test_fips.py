"""The randomness tests tell randomness from what is not."""

from __future__ import annotations

import random

import pytest

from tests.devices.virtio.fips import BLOCK, failures, passes


def test_a_good_generator_passes() -> None:
    assert failures(random.Random(1).randbytes(400 * BLOCK)) <= 3


@pytest.mark.parametrize(
    "block",
    [
        bytes(BLOCK),
        b"\xff" * BLOCK,
        b"\x55" * BLOCK,
        b"text" * (BLOCK // 4),
        bytes(4) + random.Random(1).randbytes(BLOCK - 4),
        random.Random(1).randbytes(BLOCK - 4) + b"\xff" * 4,
        bytes(b | 1 for b in random.Random(1).randbytes(BLOCK)),
        random.Random(1).randbytes(BLOCK // 2).hex().encode(),
    ],
    ids=["zeros", "ones", "alternating", "text", "a long run of 0", "a long run of 1", "a stuck bit", "hex digits"],
)
def test_what_is_not_random_fails(block: bytes) -> None:
    assert not passes(block)


def test_runs_are_counted_exactly() -> None:
    """One block that passes, with its runs counted the slow way."""
    block = next(b for b in (random.Random(i).randbytes(BLOCK) for i in range(9)) if passes(b))
    text = "".join(f"{byte:08b}" for byte in block)
    singles = [len(run) for run in text.split("0") if run]
    assert 2315 <= singles.count(1) <= 2685
    assert max(singles) < 26
