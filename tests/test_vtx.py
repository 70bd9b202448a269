"""Under Intel's VT-x, in a host that Bochs interprets: what no AMD shows."""

from __future__ import annotations

import pytest

from tests.vtx import CannotRun, Ended, run

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(2700)]


def vtx(command: str, parameters: str) -> Ended:
    try:
        ended = run(command, parameters=parameters, timeout=1200)
    except CannotRun as error:
        pytest.skip(str(error))
    assert ended.status == 0, f"{ended.status}: {ended.output}\n{ended.console[-3000:]}"
    return ended


def test_doctor_finds_that_guests_run_on_the_processor() -> None:
    assert "guest code         runs on the processor" in vtx("aiovmm doctor", "enable_apicv=0").output
