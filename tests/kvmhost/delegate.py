"""A pytest in the nested host, as the pytest outside sees it: started with test ids, read report by report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from .report_lines import MARK
from .settings import Profile

_TEST_SECONDS = 600  # for a test with no limit of its own: everything takes about nine times as long there
_TAIL_LINES = 40
_PASSED_ON = (
    "AIOVMM_LOOPS",  # says which tests there are: an event loop is part of their ids where there is more than one
    "AIOVMM_REQUIRE_GROUNDS",
    "AIOVMM_ROUNDS",
    "CI",
)  # what is a failure here, a skip above all, is one there too


class RemoteSession:
    """The pytest in the host of `profile` that runs `nodeids`, in this order."""

    def __init__(self, config: pytest.Config, profile: Profile, nodeids: list[str]) -> None:
        self._config = config
        self._tail: list[str] = []
        self._early: dict[str, list[pytest.TestReport]] = {}
        command = [sys.executable, "-m", "tests.kvmhost", "--profile", profile.kind, "--arch", profile.arch.name]
        command += ["--cpu", profile.processor, "run", *_environment()]
        command += ["--", "python", "-m", "pytest", "-p", "tests.kvmhost.report_lines", f"--timeout={_TEST_SECONDS}"]
        command += nodeids
        self._process = subprocess.Popen(
            command,
            cwd=config.rootpath,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )

    def reports(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        """The reports of `item`: setup, call and teardown; a failure of its own if the session ended without."""
        while True:
            for report in self._early.pop(item.nodeid, []):
                yield report
                if report.when == "teardown":
                    return
            if not self._read_one():
                yield self._lost(item)
                return

    def _read_one(self) -> bool:
        """Take in lines up to the next report; False at the end."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not line.startswith(MARK):
                self._tail = [*self._tail[-_TAIL_LINES:], line]
                continue
            report = read_report(self._config, line.removeprefix(MARK))
            self._early.setdefault(report.nodeid, []).append(report)
            return True
        return False

    def _lost(self, item: pytest.Item) -> pytest.TestReport:
        status = self._process.wait()
        said = "".join(self._tail)
        return pytest.TestReport(
            nodeid=item.nodeid,
            location=item.location,
            keywords={},
            outcome="failed",
            longrepr=f"the pytest in the nested host ended (status {status}) without a result for this test:\n{said}",
            when="call",
        )

    def close(self) -> None:
        """End it if it still runs; what it runs in the host ends with it."""
        if self._process.poll() is None:
            self._process.terminate()
        self._process.communicate()


def read_report(config: pytest.Config, line: str) -> pytest.TestReport:
    """What the other pytest has written."""
    report: pytest.TestReport = config.hook.pytest_report_from_serializable(config=config, data=json.loads(line))
    if isinstance(report.longrepr, list):  # a skip's place and reason, which JSON has no tuple for
        report.longrepr = tuple(report.longrepr)
    return report


def _environment() -> list[str]:
    return [word for name in _PASSED_ON if name in os.environ for word in ("--env", f"{name}={os.environ[name]}")]
