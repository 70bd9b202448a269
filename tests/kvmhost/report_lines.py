"""A pytest plugin for the nested host's side: prints each test report as a marked line of JSON.

Loaded with `-p`: its first hook comes before pytest captures standard output, so the copy taken there is the real one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

MARK = "\x1ekvmhost-report "
_OUT = -1


class _Reporter:
    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        line = f"\n{MARK}{json.dumps(data)}\n".encode()
        while line:
            line = line[os.write(_OUT, line) :]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests() -> Iterator[None]:
    global _OUT
    _OUT = os.dup(1)
    yield


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Reporter(config), "kvmhost-report-lines")
