"""A pytest in the nested host, as the pytest outside sees it: started with test ids, read report by report.

A session is started by whoever first wants a report of it; `keep_ahead` starts some before, and keeps what they say.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import IO

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
        self._command = _command(profile, nodeids)
        self._process: subprocess.Popen[str] | None = None
        self._said: IO[str] | None = None
        self._starting = threading.Lock()
        self._closed = False
        self._kept: queue.SimpleQueue[str] | None = None

    def _start(self) -> IO[str] | None:
        """What it says, line by line; None once the session is closed."""
        with self._starting:
            if self._closed:
                return None
            self._process = subprocess.Popen(
                self._command,
                cwd=self._config.rootpath,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        return self._process.stdout

    def will_be_kept(self) -> None:
        """`keep()` is going to run it, in a thread of its own."""
        self._kept = queue.SimpleQueue()

    def keep(self) -> None:
        """Run it to its end, whether or not anybody reads."""
        assert self._kept is not None
        for line in self._start() or ():
            self._kept.put(line)
        self._kept.put("")

    def _line(self) -> str:
        """The next one it says; empty at the end."""
        if self._kept is not None:
            return self._kept.get()
        self._said = self._said or self._start()
        return self._said.readline() if self._said else ""

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
        while line := self._line():
            if not line.startswith(MARK):
                self._tail = [*self._tail[-_TAIL_LINES:], line]
                continue
            report = read_report(self._config, line.removeprefix(MARK))
            self._early.setdefault(report.nodeid, []).append(report)
            return True
        if self._kept is not None:
            self._kept.put("")  # it stays at its end
        return False

    def _lost(self, item: pytest.Item) -> pytest.TestReport:
        status = self._process.wait() if self._process else None
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
        """End it if it still runs; what it runs in the host ends with it. It is not started any more."""
        with self._starting:
            self._closed = True
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
        if self._kept is None:
            self._process.communicate()
        self._process.wait()


def keep_ahead(sessions: Sequence[RemoteSession]) -> None:
    """Run them one after the other, beside whatever is reported meanwhile. Returns at once."""
    for session in sessions:
        session.will_be_kept()

    def keep_each() -> None:
        for session in sessions:
            session.keep()

    threading.Thread(target=keep_each, name="sessions ahead").start()


def read_report(config: pytest.Config, line: str) -> pytest.TestReport:
    """What the other pytest has written."""
    report: pytest.TestReport = config.hook.pytest_report_from_serializable(config=config, data=json.loads(line))
    if isinstance(report.longrepr, list):  # a skip's place and reason, which JSON has no tuple for
        report.longrepr = tuple(report.longrepr)
    return report


def _command(profile: Profile, nodeids: list[str]) -> list[str]:
    return [
        *(sys.executable, "-m", "tests.kvmhost"),
        *("--profile", profile.kind, "--arch", profile.arch.name, "--cpu", profile.processor, "run", *_environment()),
        *("--", "python", "-m", "pytest", "-p", "tests.kvmhost.report_lines", f"--timeout={_TEST_SECONDS}", *nodeids),
    ]


def _environment() -> list[str]:
    return [word for name in _PASSED_ON if name in os.environ for word in ("--env", f"{name}={os.environ[name]}")]
