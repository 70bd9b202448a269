"""The limit of locked memory, before anything is taken from the host."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from aiovmm.errors import HostError
from aiovmm.vfio.limits import check_lockable


@pytest.fixture
def status(tmp_path: Path) -> Path:
    return tmp_path / "status"


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (8 << 20, 8 << 20))


@pytest.mark.usefixtures("limited")
def test_a_guest_larger_than_the_limit_is_refused(status: Path) -> None:
    status.write_text("Name:\tx\nCapEff:\t0000000000000000\n")
    check_lockable(8 << 20, status)
    with pytest.raises(HostError, match="8192 KiB: raise it by `ulimit -l`"):
        check_lockable(9 << 20, status)


@pytest.mark.usefixtures("limited")
def test_the_capability_is_enough(status: Path) -> None:
    status.write_text("CapEff:\t0000000000004000\n")
    check_lockable(1 << 30, status)


def test_without_a_limit_nothing_is_asked(monkeypatch: pytest.MonkeyPatch, status: Path) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    check_lockable(1 << 40, status)
