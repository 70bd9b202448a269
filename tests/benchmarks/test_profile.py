"""What the kernel counted about a process while something was measured."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from benchmarks import net
from benchmarks.harness import Options
from benchmarks.profile import Profile, counters


def busy(seconds: float) -> float:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    return 42.0


def test_time_on_a_processor_is_that_of_the_measurement() -> None:
    profile = Profile()
    measure = profile.around("ours", os.getpid(), lambda: busy(0.2))
    busy(0.2)
    assert measure() == 42.0
    busy(0.2)
    rise = profile.rounds["ours"][0]
    ran = sum(value for key, value in rise.items() if key.endswith("on a processor, ms"))
    assert 0 < ran <= 1500  # a second; other threads of this process may run as well
    assert rise["host: user ms"] + rise["host: system ms"] > 0


def test_threads_go_by_their_names_without_numbers() -> None:
    release = threading.Event()
    before = counters(os.getpid())
    threads = [threading.Thread(target=release.wait) for _ in range(3)]
    for thread in threads:
        thread.start()
        comm = f"/proc/self/task/{thread.native_id}/comm"
        with open(comm, "w") as file:
            file.write(f"vcpu-{thread.native_id}")
    after = counters(os.getpid())
    release.set()
    assert "vcpu: threads" not in before
    assert after["vcpu: threads"] == 3


def test_a_table_has_medians_of_what_rose_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100, 2))  # each measurement takes two seconds
    monkeypatch.setattr("benchmarks.profile.time.monotonic", lambda: next(clock))
    profile = Profile()
    counts = iter([0.0, 10.0, 10.0, 50.0, 50.0, 70.0])
    for _ in range(3):
        profile.around("ours", os.getpid(), lambda: 1.0, lambda: {"thing": next(counts)})()
    counts = iter([9.0, 4.0])  # a thread has ended
    profile.around("theirs", os.getpid(), lambda: 1.0, lambda: {"thing": next(counts), "pool: threads": 3.0})()
    head, *lines = profile.table().splitlines()
    assert head.split() == ["ours", "theirs"]
    table = {line[:42].strip(): line[42:].split() for line in lines}
    assert table["thing"] == ["10", "0"]
    assert table["pool: threads"] == ["0", "3"]


def test_kvm_counters_that_may_not_be_read_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("benchmarks.profile._KVM", tmp_path / "none")
    monkeypatch.setattr("benchmarks.profile.os.geteuid", lambda: 1000)
    assert not [key for key in counters(os.getpid()) if key.startswith("kvm")]


def test_packets_of_an_interface_that_is_there_and_one_that_is_not() -> None:
    assert set(net.packets("lo")) == {"TAP: from the guest", "TAP: to it"}
    assert net.packets("no-such-one") == {}


@pytest.mark.parametrize("profile", [True, False])
def test_the_option_reaches_the_nested_host(profile: bool) -> None:
    from benchmarks.__main__ import as_arguments, parser

    args = parser().parse_args(["net", *as_arguments(Options(profile=profile))])
    assert args.profile is profile
