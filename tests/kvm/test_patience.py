"""Who looks and dozes: hosts with a second processor that is not emulated in software."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from aiovmm.kvm import patience as module
from aiovmm.kvm.patience import patience


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "patience", patience.__wrapped__)


def on(monkeypatch: pytest.MonkeyPatch, *, tcg: bool, processors: int) -> tuple[bool, bool]:
    monkeypatch.setattr(module, "lib", SimpleNamespace(avmm_is_tcg=lambda: tcg))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(processors)))
    found = module.patience()
    return found.look_ns > 0, found.doze is not None


def test_a_host_with_processors_of_its_own_does_both(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on(monkeypatch, tcg=False, processors=2) == (True, True)


def test_on_a_single_processor_looking_would_keep_the_other_side_from_running(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on(monkeypatch, tcg=False, processors=1) == (False, True)


def test_an_emulated_processor_is_asked_for_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on(monkeypatch, tcg=True, processors=2) == (False, False)
