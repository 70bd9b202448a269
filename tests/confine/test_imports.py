"""Modules come from where the user cannot get to, as long as he may read them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

PROGRAM = """
import sys
sys.path.insert(0, {place!r})
import early
from aiovmm.confine.identity import become, find, keep_from_gaining
identity = find("4321:8765", "--user")
keep_from_gaining()
become(identity, "--user")
import early.later, alone, colorsys
print(early.later.VALUE, alone.VALUE)
"""


def run(place: Path) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(place=str(place))
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory of modules in one that only root can get to."""
    place = tmp_path / "hidden" / "modules"
    (place / "early").mkdir(parents=True)
    for name in ("early/__init__.py", "early/later.py", "alone.py"):
        (place / name).write_text(f"VALUE = {name!r}\n")
    place.chmod(0o755)
    (tmp_path / "hidden").chmod(0o700)
    return place


@needs_root
def test_modules_and_parts_of_packages_are_found_later(place: Path) -> None:
    done = run(place)
    assert (done.stdout, done.stderr) == ("early/later.py alone.py\n", "")


@needs_root
def test_a_directory_that_the_user_may_not_read_is_named(place: Path) -> None:
    place.chmod(0o700)
    last = run(place).stderr.splitlines()[-1]
    assert f"user 4321 cannot read {place}" in last
    assert "/opt" in last


@needs_root
def test_nobody_minds_one_that_nothing_came_from(place: Path) -> None:
    elsewhere = place.parent / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    program = f"import sys; sys.path.insert(0, {str(elsewhere)!r})\n" + PROGRAM.format(place=str(place))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=elsewhere)
    assert (done.stdout, done.stderr) == ("early/later.py alone.py\n", "")


@needs_root
def test_nobody_minds_the_directory_above_that_it_was_started_in(place: Path) -> None:
    """As with `python -m aiovmm` in root's home, which the environment is in."""
    program = f"import sys; sys.path.insert(0, {str(place.parent)!r})\n" + PROGRAM.format(place=str(place))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("early/later.py alone.py\n", "")


def test_a_path_is_renamed_by_the_longest_of_those_that_it_is_in() -> None:
    from aiovmm.confine.imports import _renamed

    moved = {"/a": "/proc/self/fd/3", "/a/b": "/proc/self/fd/4"}
    assert _renamed("/a", moved) == "/proc/self/fd/3"
    assert _renamed("/a/b/c", moved) == "/proc/self/fd/4/c"
    assert _renamed("/a/bc", moved) == "/proc/self/fd/3/bc"
    assert _renamed("/ab", moved) == "/ab"
