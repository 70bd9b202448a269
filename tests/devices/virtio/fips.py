"""The statistical tests of FIPS 140-2 (change notice 1, §4.9.1), which rngtest runs, on blocks of 20,000 bits."""

from __future__ import annotations

BLOCK = 2500  # bytes
_BITS = 8 * BLOCK
_RUNS = {1: (2315, 2685), 2: (1114, 1386), 3: (527, 723), 4: (240, 384), 5: (103, 209), 6: (103, 209)}
_LONG = 26
_MASK = (1 << _BITS) - 1


def failures(data: bytes) -> int:
    """How many whole blocks of `data` fail one of the tests. A perfect source fails about 1 in 1,250."""
    return sum(not passes(data[i : i + BLOCK]) for i in range(0, len(data) - BLOCK + 1, BLOCK))


def passes(block: bytes) -> bool:
    """Whether one block passes monobit, poker, runs and long run."""
    bits = int.from_bytes(block, "big")
    return _monobit(bits) and _poker(block) and all(_runs(b) for b in (bits, bits ^ _MASK))


def _monobit(bits: int) -> bool:
    return 9725 < bits.bit_count() < 10275


def _poker(block: bytes) -> bool:
    text = block.hex()
    x = 16 / 5000 * sum(text.count(digit) ** 2 for digit in "0123456789abcdef") - 5000
    return 2.16 < x < 46.17


def _runs(bits: int) -> bool:
    """Runs of ones. The k-th step leaves of each run all but its last k-1 bits, so its beginnings are the runs of k or more."""
    at_least = []
    left = bits
    for _ in range(_LONG):
        at_least.append((left & ~(left << 1)).bit_count())
        left &= left << 1
    counts = {k: at_least[k - 1] - at_least[k] for k in range(1, 6)} | {6: at_least[5]}
    return at_least[_LONG - 1] == 0 and all(low <= counts[k] <= high for k, (low, high) in _RUNS.items())
