"""Bounded, ever slower attempts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aiovmm.vhost_user.retry import RetryPolicy


def pauses(policy: RetryPolicy) -> list[float]:
    found, left = [], policy.left
    while (pause := policy.pause(left)) is not None:
        found.append(pause)
        left -= pause
    return found


@given(st.floats(0.1, 100), st.floats(0, 1e6))
def test_pauses_double_to_a_limit_and_end(patience: float, now: float) -> None:
    policy = RetryPolicy(patience)
    policy.lost(now)
    found = pauses(policy)
    assert abs(sum(found) - patience) < 1e-3
    assert max(found) <= policy.longest
    assert found[0] == min(policy.first, found[0])
    assert len(found) <= patience / policy.longest + 10


def test_a_back_end_that_dies_at_once_each_time_is_given_up_all_the_same() -> None:
    policy = RetryPolicy(10.0)
    now, attempts = 0.0, 0
    policy.lost(now)
    while (pause := policy.pause(policy.left)) is not None:
        now += pause
        policy.left -= pause
        policy.connected(now)
        now += 0.01
        policy.lost(now)
        attempts += 1
        assert attempts < 50
    assert now <= 11


def test_what_is_served_between_two_losses_is_no_waiting() -> None:
    """One that is killed again and again, each time before it counts as good, and comes back each time."""
    policy = RetryPolicy(10.0)
    now = 0.0
    for _ in range(30):
        policy.lost(now)
        pause = policy.pause(policy.left)
        assert pause is not None
        now += pause / 4  # at once there again
        policy.left -= pause / 4
        policy.connected(now)
        now += policy.stable - 0.1
    assert now > 100


def test_one_that_lived_starts_anew() -> None:
    policy = RetryPolicy(10.0)
    policy.lost(0.0)
    assert [policy.pause(10.0), policy.pause(9.95), policy.pause(9.85)] == [0.05, 0.1, 0.2]
    policy.connected(1.0)
    policy.lost(100.0)
    assert policy.left == 10.0
    assert policy.pause(policy.left) == 0.05
    assert policy.pause(0.0) is None
