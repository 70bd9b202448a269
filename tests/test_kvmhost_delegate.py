"""Sessions of pytest in a nested host, and some begun before anybody asks for their reports: without a host."""

from __future__ import annotations

import json
import pathlib
import sys

import pytest

from tests.kvmhost import delegate
from tests.kvmhost.delegate import RemoteSession, keep_ahead
from tests.kvmhost.report_lines import MARK
from tests.kvmhost.settings import profile_named
from tests.limits import HANGS

ONE, TWO = "tests/test_a.py::test_one", "tests/test_a.py::test_two"


class Item:
    """What a session reads of a test."""

    def __init__(self, nodeid: str) -> None:
        self.nodeid = nodeid
        self.location = ("tests/test_a.py", 0, nodeid)


def reports(config: pytest.Config, nodeid: str) -> list[str]:
    made = [
        pytest.TestReport(nodeid, ("tests/test_a.py", 0, nodeid), {}, "passed", None, when)
        for when in ("call", "teardown")
    ]
    return [json.dumps(config.hook.pytest_report_to_serializable(config=config, report=one)) for one in made]


def says(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Each session begun from now on runs `program` instead of a nested host's pytest."""
    monkeypatch.setattr(delegate, "_command", lambda profile, nodeids: [sys.executable, "-c", program, *nodeids])


def outcomes(session: RemoteSession, nodeid: str) -> list[str]:
    return [f"{one.when} {one.outcome}" for one in session.reports(Item(nodeid))]  # type: ignore[arg-type]


PASSED = ["call passed", "teardown passed"]


@pytest.mark.parametrize("ahead", [False, True])
def test_reports_come_by_test_and_what_is_missing_failed(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    lines = "\n".join(MARK + line for line in (*reports(pytestconfig, TWO), *reports(pytestconfig, ONE)))
    says(monkeypatch, f"print({lines!r}); print('the end of it'); raise SystemExit(3)")
    session = RemoteSession(pytestconfig, profile_named("default"), [ONE, TWO])
    if ahead:
        keep_ahead([session])
    assert outcomes(session, ONE) == PASSED
    assert outcomes(session, TWO) == PASSED
    for _ in range(2):
        (lost,) = session.reports(Item("tests/test_a.py::test_three"))  # type: ignore[arg-type]
        assert "(status 3)" in str(lost.longrepr)
        assert "the end of it" in str(lost.longrepr)
    session.close()


def test_sessions_ahead_run_one_after_the_other_though_nobody_reads(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    says(
        monkeypatch,
        # more than a pipe holds
        f"import sys, pathlib; print('x' * 200_000); pathlib.Path(sys.argv[1]).touch()\n"
        f"print(len(list(pathlib.Path({str(tmp_path)!r}).iterdir())))",
    )
    sessions = [RemoteSession(pytestconfig, profile_named("default"), [str(tmp_path / name)]) for name in "abc"]
    keep_ahead(sessions)
    for number, session in reversed(list(enumerate(sessions, 1))):
        (lost,) = session.reports(Item(ONE))  # type: ignore[arg-type]
        assert str(lost.longrepr).endswith(f"x\n{number}\n")
        session.close()


@pytest.mark.timeout(HANGS)
@pytest.mark.parametrize("ahead", [False, True])
def test_a_closed_session_is_ended_and_no_further_one_begun(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, ahead: bool
) -> None:
    says(
        monkeypatch,
        "import sys, pathlib, time; pathlib.Path(sys.argv[1]).touch(); print('up', flush=True); time.sleep(1e6)",
    )
    sessions = [RemoteSession(pytestconfig, profile_named("default"), [str(tmp_path / name)]) for name in "ab"]
    if ahead:
        keep_ahead(sessions)
    assert sessions[0]._line() == "up\n"
    for session in reversed(sessions):
        session.close()
    if ahead:
        assert sessions[1]._line() == ""
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
