"""What hangs fails on every event loop, and what does not even end then ends the process with what it was at."""

from __future__ import annotations

import pytest

from tests.test_grounds import CONFTEST

pytest_plugins = ["pytester"]
INI = "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function"

HANGS = """
import asyncio, pytest

@pytest.mark.timeout(1)
async def test_hangs():
    await asyncio.Event().wait()

@pytest.mark.timeout(20)
async def test_that_waits_for_what_is_late_in_vain():
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), 0.01)

async def test_whose_own_patience_ends():
    await asyncio.wait_for(asyncio.Event().wait(), 0.01)
"""

STUBBORN = """
import asyncio, pytest
from tests import time_limits
time_limits.GRACE = 0.5

async def hears_nothing():
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass

@pytest.mark.timeout(1)
async def test_that_leaves_what_does_not_end():
    asyncio.ensure_future(hears_nothing())
    await asyncio.sleep(0)
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_what_hangs_fails_and_the_next_goes_on(
    loop: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOVMM_LOOPS", loop)
    pytester.makeconftest(CONFTEST)
    pytester.makeini(INI)
    pytester.makepyfile(HANGS)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", timeout=50)
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["E * its 1 seconds are over*" if loop == "uvloop" else "*Timeout*1*"])


def test_what_does_not_end_ends_the_process_and_says_where_it_was(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOVMM_LOOPS", "uvloop")
    pytester.makeconftest(CONFTEST)
    pytester.makeini(INI)
    pytester.makepyfile(STUBBORN)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", timeout=50)
    assert result.ret == 1
    result.stderr.fnmatch_lines(["Timeout (*", "*most recent call first*", "*runners.py*"])
