"""Tests on several processors (`pytest -n`): one worker has all that use the nested host, the others the rest, file by file.

The nested host takes one at a time, so two workers would wait for each other there. Its tests begin first: they take longest.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

_ROOT = Path(__file__).parents[1]
NESTED = "nested host"


@cache
def group(file: str) -> str:
    """What the tests of `file` (relative to the project) share a worker with: NESTED, or only each other."""
    nested = file.startswith("tests/system/") or "kvmhost" in (_ROOT / file).read_text()
    return NESTED if nested else file


def _group_of(nodeid: str) -> str:
    return group(nodeid.partition("::")[0])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not hasattr(config, "workerinput"):
        return
    for item in items:
        used = item.get_closest_marker("kvmhost") or item.get_closest_marker("kvmhost_client")
        if used and _group_of(item.nodeid) != NESTED:
            raise pytest.UsageError(f"{item.nodeid} uses the nested host, and tests/parallel.py does not see that")
    items.sort(key=lambda item: _group_of(item.nodeid) != NESTED)  # stable


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    from xdist.scheduler import LoadScopeScheduling

    class ByGround(LoadScopeScheduling):  # type: ignore[misc] # which has no types
        def _split_scope(self, nodeid: str) -> str:
            return _group_of(nodeid)

    config.option.loadscopereorder = False  # the order above, not by how many tests there are
    return ByGround(config, log)
