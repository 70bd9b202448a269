"""What the kernel counted about a process while something was measured."""

from __future__ import annotations

import os
import threading
import time

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


def test_a_table_has_medians_of_what_rose() -> None:
    profile = Profile()
    counts = iter([0.0, 10.0, 10.0, 50.0, 50.0, 70.0])
    for _ in range(3):
        profile.around("ours", os.getpid(), lambda: busy(0.001), lambda: {"thing": next(counts)})()
    profile.around("theirs", os.getpid(), lambda: 1.0, lambda: {"thing": 5.0})()
    head, *lines = profile.table().splitlines()
    assert head.split() == ["ours", "theirs"]
    line = next(line for line in lines if line.split()[0] == "thing")
    ours, theirs = line.split()[1:]
    assert int(ours.replace(",", "")) > 0
    assert theirs == "0"


def test_packets_of_an_interface_that_is_there_and_one_that_is_not() -> None:
    assert set(net.packets("lo")) == {"TAP: from the guest", "TAP: to it"}
    assert net.packets("no-such-one") == {}


@pytest.mark.parametrize("profile", [True, False])
def test_the_option_reaches_the_nested_host(profile: bool) -> None:
    from benchmarks.__main__ import as_arguments, parser

    args = parser().parse_args(["net", *as_arguments(Options(profile=profile))])
    assert args.profile is profile
