"""The soak itself: it does all that it says, and it would see what grows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from aiovmm.errors import KvmError
from aiovmm.kvm import Kvm
from tests.soak.run import soak
from tests.soak.samples import Sample, grown

CALM = Sample(resident=50 << 20, descriptors=80, threads=10, tasks=25, late=0.01)


@pytest.mark.parametrize("name", ["resident", "descriptors", "threads", "tasks"])
def test_what_grows_is_named(name: str) -> None:
    value = getattr(CALM, name)
    growing = [replace(CALM, **{name: value + value * step // 20}) for step in range(40)]
    assert [line.partition(":")[0] for line in grown(growing)] == [name]


def test_what_comes_and_goes_does_not_grow() -> None:
    """A soak's own tasks: of the last quarter most moments had more than of the second, but some had as few."""
    tasks = [94] * 15 + [82, 64, 107, 80, 83] * 3 + [95] * 15 + [97, 66, 119, 96, 98] * 3
    assert grown([replace(CALM, tasks=count) for count in tasks]) == []
    left = [count + 30 * (at > 40) for at, count in enumerate(tasks)]
    assert grown([replace(CALM, tasks=count) for count in left]) == ["tasks: 82, then 127"]


def test_a_peak_is_no_growth() -> None:
    assert grown([CALM] * 10 + [replace(CALM, descriptors=500, resident=1 << 30)] + [CALM] * 10) == []
    assert grown([]) == []


@pytest.mark.kvm
async def test_a_short_one_does_all_that_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        Kvm.open().close()
    except KvmError as exc:
        pytest.skip(f"/dev/kvm cannot be used: {exc}")
    wanted = {"started", "paused", "read", "written to", "driven"}
    for seconds in (4, 8, 16, 32):  # on a machine that is busy it takes longer
        (place := tmp_path / str(seconds)).mkdir()
        await soak(place, seconds, 1)
        last = capsys.readouterr().out.splitlines()[-1]
        if all(deed in last for deed in wanted):
            return
    pytest.fail(last)
