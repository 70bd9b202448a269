"""A test whose guest the nested host's emulator has lost is run once more, and the summary says so.

README.md has what QEMU's AMD-V does to guests now and then, ours and QEMU's own. Only what no monitor can do counts, which
LostByKvm describes.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest
from _pytest.runner import runtestprotocol

__all__ = ["Again", "LostByKvm"]

_LOST = pytest.StashKey[str]()
_PROPERTY = "lost by the emulator"


class LostByKvm(AssertionError):
    """A processor of a guest is in KVM_RUN, runnable by what KVM says, with interrupts enabled and one requested, and executes no
    instruction, however often it is entered."""


class Again:
    """A plugin for the pytest that runs in the host."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        if call.excinfo is not None and call.excinfo.errisinstance(LostByKvm):
            item.stash.setdefault(_LOST, str(call.excinfo.value))
        report = yield
        report.user_properties.extend([(_PROPERTY, item.stash[_LOST])] if _LOST in item.stash else [])
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        if _LOST in item.stash:
            reports = runtestprotocol(item, log=False, nextitem=nextitem)
        for report in reports:
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True


def lost(reports: list[pytest.TestReport]) -> dict[str, str]:
    """Of the reports of a whole run: the tests that were run again, and what was known of the guest."""
    return {
        report.nodeid: str(text) for report in reports for name, text in report.user_properties if name == _PROPERTY
    }
