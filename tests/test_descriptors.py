"""Descriptors that guests and peers have opened: a share each, and a reserve that is nobody's."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aiovmm.runtime.descriptors import Descriptors


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
