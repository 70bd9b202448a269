"""Modules that are used if somebody has them: wholly, whatever other threads are importing meanwhile."""

from __future__ import annotations

import importlib
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from aiovmm.machine.power import _is_known
from aiovmm.runtime.lazy import imported
from tests.vm.guest import config

SLOW = """
from tests.test_imported import GATE
GATE.begun.set()
assert GATE.go_on.wait(20)
late = 1
"""


class Gate:
    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()


GATE = Gate()


def test_one_that_another_thread_is_importing_is_not_there_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slowly_imported.py").write_text(SLOW)
    monkeypatch.syspath_prepend(tmp_path)
    assert imported("slowly_imported") is None
    thread = threading.Thread(target=importlib.import_module, args=("slowly_imported",))
    thread.start()
    try:
        assert GATE.begun.wait(20)
        assert "slowly_imported" in sys.modules
        assert imported("slowly_imported") is None
    finally:
        GATE.go_on.set()
        thread.join()
    assert imported("slowly_imported").late == 1
    del sys.modules["slowly_imported"]


def test_a_guest_starts_while_another_one_imports_what_it_is_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    class Spec:
        _initializing = True

    half = type(sys)("aiovmm.boot.kernel")
    half.__spec__ = Spec()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "aiovmm.boot.kernel", half)
    assert not _is_known(replace(config("s")))
