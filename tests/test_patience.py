"""Who looks for what another thread does: hosts on which that thread can run meanwhile."""

from __future__ import annotations

import os

import pytest

from aiovmm.runtime.patience import LOOK_NS, look_ns


@pytest.mark.parametrize(("processors", "expected"), [(1, 0), (2, LOOK_NS), (8, LOOK_NS)])
def test_only_a_host_with_several_processors_looks(
    processors: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(processors)))
    assert look_ns.__wrapped__() == expected
