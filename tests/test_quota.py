"""What a guest can cause is told within limits that no reset renews."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aiovmm.lifecycle import EventKind, ExitReason, ExitStatus
from aiovmm.machine.journal import Journal
from aiovmm.runtime.quota import BURST, SECONDS_EACH, Quota


def test_after_a_burst_there_is_one_at_a_time_with_the_number_of_those_before() -> None:
    quota = Quota()
    assert [quota.take(100.0) for _ in range(BURST + 5)] == [0] * BURST + [None] * 5
    assert quota.take(100.0 + SECONDS_EACH) == 5
    assert quota.take(100.0 + SECONDS_EACH) is None
    assert quota.take(100.0 + 2 * SECONDS_EACH) == 1


@given(st.lists(st.floats(0, 50), max_size=300))
def test_whatever_the_times_no_more_than_the_burst_and_the_rate_are_told_and_all_are_counted(
    pauses: list[float],
) -> None:
    quota, now, told, untold = Quota(), 7.0, 0, 0
    for pause in pauses:
        now += pause
        taken = quota.take(now)
        if taken is not None:
            told, untold = told + 1, untold + taken
    assert told <= BURST + (now - 7.0) / SECONDS_EACH
    assert untold <= len(pauses) - told
    taken = quota.take(now + 10 * SECONDS_EACH)
    assert taken == len(pauses) - told - untold


async def test_resets_renew_nothing() -> None:
    journal = Journal("guest")
    events = journal.subscribe(from_start=True)
    for _ in range(20):
        journal.emit(EventKind.REBOOTED)
        for _ in range(10):
            journal.device_error("disk0", OSError("it broke"))
    journal.device_error("disk1", OSError("this one broke once"))
    journal.end(ExitStatus(ExitReason.KILLED))
    told = [e async for e in events if e.kind is EventKind.DEVICE_ERROR]
    assert [e.device for e in told] == ["disk0"] * BURST + ["disk1"]
    assert told[0].detail == "it broke"
