"""Tests on several processors: what shares a worker, and that it does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.parallel import NESTED, group
from tests.system import debian

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


def test_workers_that_collect_at_once_all_compile_what_guests_run(tmp_path: Path) -> None:
    there = f"programs.BIN = pathlib.Path({str(tmp_path)!r})"
    code = f"import pathlib; from tests.system import programs; {there}; programs.compile_programs()"
    workers = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) for _ in range(4)]
    assert [worker.wait() for worker in workers] == [0] * 4
    assert {path.name for path in tmp_path.glob("*/*")} == {"features", "vsock"}, "and nothing is left"


def test_what_another_worker_has_brought_is_there(tmp_path: Path) -> None:
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    debian._put(tmp_path / "mine", tmp_path / "theirs")
    assert (tmp_path / "theirs/file").read_text() == "theirs"
    debian._put(tmp_path / "mine", tmp_path / "place")
    assert (tmp_path / "place/file").read_text() == "mine"
    with pytest.raises(OSError):
        debian._put(tmp_path / "mine", tmp_path / "gone")
