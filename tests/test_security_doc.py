"""docs/security.md names for each promise the tests that hold it: they are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs/security.md").read_text()
TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", TEXT)))
PROMISES = TEXT.partition("## What is promised")[2].partition("## ")[0].strip().splitlines()[2:]


@pytest.mark.parametrize(("file", "test"), TESTS, ids=lambda value: str(value).rpartition("/")[2])
def test_each_test_is_there(file: str, test: str) -> None:
    assert re.search(rf"def {test or 'test_'}", (ROOT / file).read_text())


@pytest.mark.parametrize("promise", PROMISES, ids=lambda line: line[2:42])
def test_each_promise_has_one(promise: str) -> None:
    assert re.search(r"`tests/[\w/]+\.py", promise)
