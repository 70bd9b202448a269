"""Shared by all tests: every async test runs on asyncio's own loop and on uvloop."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable, Generator, Mapping

import pytest
import uvloop
from hypothesis import settings

from tests.grounds import excused, skip_reason
from tests.interrupt_key import heeded_by_programs

pytest_plugins = ["tests.kvmhost.plugin", "tests.parallel", "tests.time_limits"]
heeded_by_programs()


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    loops = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    chosen = os.environ.get(
        "AIOVMM_LOOPS", ""
    )  # one of them, where which loop turns matters less than the time it takes
    return {name: loops[name] for name in chosen.split(",")} if chosen else loops


# CI's examples repeat; everywhere else they are new each time. No example has a deadline: the machine may be busy, or the native
# code sanitized.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", derandomize=True, deadline=None)
settings.load_profile("ci" if os.environ.get("CI") or os.environ.get("AIOVMM_REQUIRE_GROUNDS") else "here")

THOROUGH = os.environ.get("AIOVMM_THOROUGH", "") not in ("", "0")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`make test` boots what shows each part alive; AIOVMM_THOROUGH=1 (`make test-thorough`) adds what takes many minutes."""
    if THOROUGH or any("::" in argument for argument in config.args):
        return
    long = [item for item in items if item.get_closest_marker("thorough")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if not item.get_closest_marker("thorough")]


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What was collected stays: whoever looks for garbage, as many tests do before and after, need not go through all of it."""
    gc.collect()
    gc.freeze()


REQUIRED = os.environ.get("AIOVMM_REQUIRE_GROUNDS", "") not in ("", "0")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """On CI a skipped test fails, unless the machine itself cannot have what it needs (tests/grounds.py)."""
    report = yield
    if REQUIRED and report.skipped and not hasattr(report, "wasxfail") and not excused(skip_reason(report.longrepr)):
        report.outcome = "failed"
        report.longrepr = f"skipped, although AIOVMM_REQUIRE_GROUNDS is set: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def writes_are_known() -> None:
    """Skips where the kernel does not tell of them."""
    from aiovmm.native import lib  # for who asks

    fd = lib.avmm_dirty_open()
    if fd < 0:
        pytest.skip(
            f"the host's kernel knows not what is written, as Linux 6.7 does (on arm64 6.10): {os.strerror(-fd)}"
        )
    os.close(fd)
