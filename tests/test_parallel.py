"""Tests on several processors: what shares a worker, and that it does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parallel import NESTED, group

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[1]
_CONFTEST = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import tests.parallel
tests.parallel.group = lambda file: tests.parallel.NESTED if "_n_" in file else file
pytest_plugins = ["tests.parallel"]
"""
_FILE = """
import os
import pytest

@pytest.mark.parametrize("number", range(5))
def test_it(number):
    with open(os.environ["SEEN"], "a") as seen:
        print(__name__, os.environ["PYTEST_XDIST_WORKER"], file=seen)
"""


def test_what_uses_the_nested_host_is_one_group_and_each_other_file_one() -> None:
    assert group("tests/system/test_boot.py") == group("tests/test_kvmhost_live.py") == NESTED
    assert group("tests/devices/test_arm_guests.py") == NESTED
    assert group("tests/test_plain.py") == "tests/test_plain.py"


def test_the_tests_of_a_file_run_in_one_worker_each(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytester.makeconftest(_CONFTEST)
    names = ["test_a", "test_b", "test_n_a", "test_z", "test_n_z"]
    pytester.makepyfile(**dict.fromkeys(names, _FILE))
    seen = pytester.path / "seen"
    monkeypatch.setenv("SEEN", str(seen))
    assert pytester.runpytest_subprocess("-n", "2", "-p", "no:cacheprovider").ret == 0
    lines = [tuple(line.split()) for line in seen.read_text().splitlines()]
    assert len(lines) == 25
    workers = {name: {worker for one, worker in lines if one == name} for name in names}
    assert all(len(of) == 1 for of in workers.values()), workers
    assert workers["test_n_a"] == workers["test_n_z"]
