"""The clock of the nested host runs as this machine's does, whatever else kept its processors busy when it started."""

from __future__ import annotations

import platform
import time
from pathlib import Path

import pytest

from tests.kvmhost import Host, tsc
from tests.kvmhost.image import Image
from tests.kvmhost.machine import Machine
from tests.kvmhost.qemu import Qemu
from tests.kvmhost.settings import Size, profile_named

x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the counter is an x86 processor's")


@x86
def test_it_is_measured_the_same_each_time() -> None:
    found = []
    for _ in range(3):
        tsc.khz.cache_clear()
        found.append(tsc.khz())
    assert max(found) - min(found) < max(found) / 1000
    assert found[0] > 100_000


def test_only_a_kernel_that_would_measure_it_is_told() -> None:
    told = tsc.kernel_argument("x86_64")
    assert told == (f"tsc_early_khz={tsc.khz()}" if platform.machine() == "x86_64" else "")
    assert tsc.kernel_argument("aarch64") == ""


def test_a_host_that_runs_is_not_another_for_another_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.kvmhost.machine.build", lambda boot, profile: b"")
    machine, image = Machine(tmp_path, profile_named()), Image(tmp_path)
    digests = []
    for khz in (1000, 1001):
        monkeypatch.setattr(tsc, "khz", lambda khz=khz: khz)
        digests.append(machine.made_of(image, Qemu(), Size(1, 1 << 30)))
    assert digests[0] == digests[1]


def seconds(host: Host) -> tuple[float, float, float]:
    """This machine's clock before, the host's, and this machine's after."""
    before = time.monotonic()
    there = float(host.run(["python3", "-c", "import time; print(time.monotonic())"]).check().stdout)
    return before, there, time.monotonic()


@pytest.mark.timeout(600)
def test_a_second_there_is_a_second_here(kvmhost: Host) -> None:
    before, began, after = seconds(kvmhost)
    time.sleep(3)  # beside which what a command takes is little
    then, ended, now = seconds(kvmhost)
    assert 0.98 * (then - after) <= ended - began <= 1.02 * (now - before)
