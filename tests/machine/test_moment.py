"""How much time has passed for a guest in a snapshot: by the host's monotonic clock, or by its wall clock after another boot."""

from __future__ import annotations

import pytest

from aiovmm.errors import SnapshotError
from aiovmm.machine import moment
from aiovmm.machine.moment import Moment
from aiovmm.runtime.plain import Fields

SECOND = 1_000_000_000


@pytest.mark.parametrize(
    ("boot_id", "boottime", "realtime", "passed"),
    [
        ("a", 15, 900, 5),  # the wall clock was set
        ("a", 9, 100, 0),  # which cannot be
        ("b", 1, 130, 30),
        ("b", 1, 70, 0),  # it was set back
        ("", 15, 104, 4),  # nobody knows which boot it is
    ],
)
def test_by_which_clock(
    boot_id: str, boottime: int, realtime: int, passed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    then = Moment("a" if boot_id else "", 10 * SECOND, 100 * SECOND)
    now = Moment(boot_id, boottime * SECOND, realtime * SECOND)
    monkeypatch.setattr(moment.Moment, "now", lambda _: now)
    assert then.passed_ns() == passed * SECOND


def test_it_comes_back_from_its_fields() -> None:
    now = Moment.now()
    assert Moment.read(Fields(now.save(), "m")) == now
    with pytest.raises(SnapshotError, match="boottime_ns is -1"):
        Moment.read(Fields({**now.save(), "boottime_ns": -1}, "m"))
