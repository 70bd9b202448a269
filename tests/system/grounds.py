"""Which of these tests run in which nested hosts: all in that of x86 but what is of arm64 itself, and in those of arm64 what is
not of x86 itself: no ACPI, SMBIOS or NUMA, none of its kernels has a driver for pvpanic, and neither passt nor QEMU is
in its image.

A test is the same in each; of arm64 its parameters begin with the processor: `test_x[aarch64-6.1]`, `test_x[cortex-a72-6.1]`.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.kvmhost.arch import AARCH64

_X86_ALONE = {
    "test_many.py": "",
    "test_failed_entry.py": "",
    "test_boot.py": "triple_fault before_it_has_run_user_space",
    "test_vhost_user.py": "qemu_is_served",
    "test_hotplug.py": "a_disk vhost_user_device over_a_reboot without_hotplug processors memory_modules thirty_rounds",
    "test_iommufd.py": "",
    "test_machine.py": "",
    "test_readers.py": "",
    "test_sandbox.py": "network_by_passt",
    "test_snapshot.py": "is_not_mute",
    "test_vfio.py": "comes_to_a_guest_that_runs",
    "test_vfio_net.py": "comes_to_a_guest_that_runs",
}
"""Of each file all (""), or the tests that have one of these parts in their names."""

_ARM64_ALONE = ("test_pl031.py", "test_features.py", "test_counter.py")
"""Files of what there is on arm64 alone."""

_OF_THE_PROCESSOR = {
    "test_boot.py",
    "test_counter.py",
    "test_features.py",
    "test_pl031.py",
    "test_snapshot.py",
    "test_forks.py",
    "test_warm.py",
    "test_balloon.py",
    "test_hotplug.py",
    "test_pmem.py",
    "test_blk.py",
    "test_pci.py",
    "test_vfio.py",
    "test_vfio_net.py",
}
"""Files of what KVM or the processor has a part in: its start and end, its time, memory that changes below it, interrupts, and
its state; the other devices are user space's alone."""

CORE = {
    "test_boot.py": "powers_off[6.1-image] or powers_off[6.12-elf] or powers_off[newest-image] or heeds[6.1]"
    " or power_button_is_heeded[6.1] or restarts_when_the_policy_says_so[6.1] or triple_fault or told_apart_from_a_reboot[6.1]",
    "test_confined.py": "calls-and-paths",
    "test_machine.py": "that_was_described[6.1]",
    "test_net.py": "test_traffic_both_ways[6.1]",
    "test_failed_entry.py": "",
    "test_pci.py": "interrupted_by_pins[6.1]",
    "test_pmem.py": "root_file_system_is_on_pmem[shared]",
    "test_rng_console.py": "carries_bytes_both_ways[6.1] or prints_last_arrives[serial]",
    "test_vfio_net.py": "that_has_intx_alone",
    "test_snapshot.py": "goes_on_elsewhere[6.1]",
    "test_vhost_user.py": "storage_daemons_disk",
    "test_sandbox.py": "commands[6.1]",
    "test_vsock.py": "test_linux_speaks_vsock[6.1]",
    "test_terminal.py": "attach_type_detach",
}
"""What `make test` runs of each file: all (""), or what holds one of these parts of names. The rest is `thorough`."""

CORE_AARCH64 = {
    "test_boot.py": "powers_off[6.1- or heeds[6.1]",
    "test_blk.py": "four_queues",
    "test_net.py": "test_traffic_both_ways[6.1]",
    "test_pl031.py": "alarm_wakes[6.1]",
}
"""The same in the host of arm64, on its usual processor."""

HOSTS = [
    pytest.param("x86_64", id=pytest.HIDDEN_PARAM),
    *(
        pytest.param(
            model, id=model if number else AARCH64.name, marks=pytest.mark.kvmhost(arch=AARCH64.name, cpu=model)
        )
        for number, model in enumerate(AARCH64.processors)
    ),
]


def hosts_of(file: str, test: str) -> Sequence[object]:
    """Of HOSTS those in which the test function `test` of `file` runs."""
    if file in _ARM64_ALONE:
        return HOSTS[1:]
    alone = _X86_ALONE.get(file)
    is_of_x86 = alone is not None and (not alone or any(part in test for part in alone.split()))
    return HOSTS[:1] if is_of_x86 else HOSTS


def is_core(item: pytest.Item) -> bool:
    host, name = host_of(item), item.name
    if host == AARCH64.processors[0]:
        name = name.replace(f"[{AARCH64.name}-", "[").replace(f"[{AARCH64.name}]", "")
    table = {"x86_64": CORE, AARCH64.processors[0]: CORE_AARCH64}.get(host, {})
    parts = table.get(item.path.name)
    return parts is not None and any(part in name for part in parts.split(" or "))


def host_of(item: pytest.Item) -> str:
    parameters: dict[str, object] = getattr(getattr(item, "callspec", None), "params", {})
    return str(parameters.get("host", "x86_64"))


def is_of_x86(item: pytest.Item) -> bool:
    """It is of a file format that there is on x86 alone, although its function is not."""
    return bool(getattr(getattr(item, "callspec", None), "params", {}).get("elf")) and host_of(item) != "x86_64"


def is_more_of_the_same(item: pytest.Item) -> bool:
    """Each kernel with each device on each processor would take longer than anybody waits, so all of it runs on x86. On arm64 no
    other kernel than the oldest runs but for what is the processor's, and there the newest. The second processor, which has
    another KVM, sees nothing else, and booting alone by both."""
    host, of_processor = host_of(item), item.path.name in _OF_THE_PROCESSOR
    releases = set(getattr(getattr(item, "callspec", None), "params", {}).values()) & {"6.12", "newest"}
    if host == "x86_64":
        return False
    if host == AARCH64.processors[0]:
        return "6.12" in releases or (bool(releases) and not of_processor)
    return not of_processor or (bool(releases) and item.path.name != "test_boot.py")
