"""Under Intel's VT-x, in a host that Bochs interprets: what no AMD shows."""

from __future__ import annotations

import pytest

from tests.vtx import CannotRun, Ended, run

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(2700)]

GUEST = """
set -e
aiovmm image initramfs /tmp/i --busybox /guest/bin/busybox --modules /guest/6.1/modules --run 'grep model /proc/cpuinfo'
timeout 600 aiovmm run --kernel /guest/6.1/vmlinuz --initramfs /tmp/i --memory 256M --cpus 1 \\
  --serial tty --console off --cmdline 'console=ttyS0 quiet panic=-1'
"""
REFUSED = "python -m pytest -q -p no:cacheprovider --timeout=600 tests/system/test_failed_entry.py"


def vtx(command: str, parameters: str) -> Ended:
    try:
        ended = run(command, parameters=parameters, timeout=1200)
    except CannotRun as error:
        pytest.skip(str(error))
    assert ended.status == 0, f"{ended.status}: {ended.output}\n{ended.console[-3000:]}"
    return ended


def test_doctor_finds_that_guests_run_on_the_processor() -> None:
    assert "guest code         runs on the processor" in vtx("aiovmm doctor", "enable_apicv=0").output


def test_a_state_that_intels_processor_refuses() -> None:
    assert "1 passed" in vtx(REFUSED, "enable_apicv=0").output


@pytest.mark.parametrize("parameters", ["enable_apicv=0", "enable_apicv=0 ept=0"])
def test_a_stock_kernel_boots_and_sees_the_processor(parameters: str) -> None:
    said = vtx(GUEST, parameters).output
    assert "aiovmm: run end status=0" in said
    assert "Intel(R) Core(TM) i7-7800X" in said
