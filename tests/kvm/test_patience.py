"""Who looks for the other side of an exit: hosts on which that side can run meanwhile."""

from __future__ import annotations

import os

import pytest

from aiovmm.kvm.patience import patience


@pytest.mark.parametrize(("processors", "looks"), [(1, False), (2, True), (8, True)])
def test_only_a_host_with_several_processors_looks(
    processors: int, looks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(processors)))
    found = patience.__wrapped__()
    assert (found.look_ns > 0) is looks
    assert found.doze > 0
