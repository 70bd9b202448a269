"""Descriptors that guests and peers have opened: a share each, and a reserve that is nobody's."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from aiovmm.runtime.descriptors import PROCESS, Descriptors


@given(
    limit=st.integers(0, 1 << 20),
    wishes=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 400)), max_size=60),
)
def test_whatever_they_ask_for_the_reserve_stays_and_who_comes_next_finds_a_share(
    limit: int, wishes: list[tuple[int, int]]
) -> None:
    descriptors = Descriptors(lambda: limit, lambda: 0)
    shares = [descriptors.share() for _ in range(4)]
    for who, count in wishes:
        before = shares[who].held
        taken = shares[who].take(count)
        assert shares[who].held == before + (count if taken else 0)
        assert shares[who].held <= limit * 3 // 4 // 5
    late = descriptors.share()
    assert sum(s.held for s in shares) <= limit * 3 // 4 - late.most or limit < 8
    assert late.most == 0 or late.take(late.most)


def test_descriptors_of_others_count_as_well() -> None:
    used: list[int | None] = [100]
    share = Descriptors(lambda: 1024, lambda: used[0]).share()
    assert share.take(300)
    used[0] = 768
    assert not share.take()
    used[0] = None  # none is left at all
    assert not share.take()
    used[0] = 767
    assert share.take()
    share.give(301)
    assert share.held == 0


def test_what_a_reset_gives_back_for_a_moment_is_nobodys() -> None:
    used = [700]
    descriptors = Descriptors(lambda: 1024, lambda: used[0])
    share = descriptors.share()
    with descriptors.kept(300):
        used[0] -= 300
        assert share.take(68)
        assert not share.take(69)
    share.give(68)
    assert share.take(300)


def test_the_share_of_one_that_is_closed_is_the_others() -> None:
    descriptors = Descriptors(lambda: 1024, lambda: 0)
    share, others = descriptors.share(), [descriptors.share() for _ in range(99)]
    assert share.most == 768 // 101
    for other in others:
        other.close()
        other.close()
    assert share.most == 768 // 2


def test_descriptors_are_counted_and_not_guessed_from_the_lowest_that_is_free() -> None:
    """Whoever is taken apart for a moment, as a guest that resets itself, leaves a gap below those of the others."""
    if not os.stat("/proc/self/fd").st_size:  # Linux before 6.2
        return
    gap = os.dup(0)
    above = [os.dup(0) for _ in range(50)]
    os.close(gap)
    seen = PROCESS._in_use()
    there = len(os.listdir("/proc/self/fd")) - 1  # that of the list is one
    for fd in above:
        os.close(fd)
    assert seen == there
    assert seen > gap
