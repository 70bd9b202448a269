"""What a worker says that its guest is made of: only what can have become of what it was made with, and was asked to have."""

from __future__ import annotations

import json
from bisect import bisect
from pathlib import Path
from typing import Any

import pytest

from aiovmm import (
    ConfigError,
    ConsoleConfig,
    ConsoleMode,
    CpusConfig,
    DiskConfig,
    MemoryConfig,
    NetConfig,
    PayloadConfig,
    RngConfig,
    SnapshotError,
    VMConfig,
    VsockConfig,
)
from aiovmm.config import HotplugMethod
from aiovmm.machine.hotplug.configured import pinned, with_device, without_device
from aiovmm.pool.workers.frames import FROM_WORKER, encode
from aiovmm.pool.workers.told_config import check_told, config_of, place_of
from aiovmm.runtime.dataclass import replace
from aiovmm.snapshot.configuration import to_state

DISK = DiskConfig(path=Path("/images/new"))
KNOWN = VMConfig(
    name="g",
    payload=PayloadConfig(kernel=Path("/boot/k")),
    cpus=CpusConfig(1, max=4),
    memory=MemoryConfig(size=128 << 20, hotplug_size=128 << 20, hotplug_method=HotplugMethod.VIRTIO_MEM),
    disks=(DiskConfig(path=Path("/images/a")), DiskConfig(path=Path("/images/b"), readonly=True)),
    nets=(NetConfig(tap="tap0"),),
    rng=RngConfig(),
)


def told(config: VMConfig) -> Any:
    """As it comes over the socket."""
    return json.loads(json.dumps(to_state(config)))


def taken(config: VMConfig, *coming: Any, known: VMConfig = KNOWN) -> VMConfig:
    return config_of(known, coming, told(config))


SLOTS = {"console": 1, "disk0": 2, "disk1": 3, "net0": 4, "rng": 5, "new": 6, "vsock": 7}


def slots(config: VMConfig) -> VMConfig:
    """As when it is changed for the first time."""
    return pinned(config, SLOTS.get)


def with_disks(count: int) -> VMConfig:
    platform = replace(KNOWN.platform, num_pci_segments=64)
    disks = tuple(DiskConfig(path=Path(f"/images/{n}"), pci_segment=n // 30) for n in range(count))
    return replace(KNOWN, platform=platform, disks=disks)


def test_as_many_devices_as_are_taken_can_be_told_of_with_all_that_they_are_given() -> None:
    most = bisect(range(1000), 0, key=lambda count: not is_taken(with_disks(count))) - 1
    assert most > 400
    placed = pinned(with_disks(most), {f"disk{n}": n % 30 + 1 for n in range(most)}.get)
    told = {"op": "event", "vm": 1 << 32, "detail": "x" * 4096, "device": "disk999", "config": to_state(placed)}
    assert encode(told, bound=FROM_WORKER)
    with pytest.raises(ConfigError, match=f"{most + 3} are more than a worker process can tell of"):
        check_told(with_disks(most), [DISK])


def is_taken(config: VMConfig) -> bool:
    try:
        check_told(config)
    except ConfigError:
        return False
    return True


def test_ids_and_slots_are_given_and_devices_come_and_go() -> None:
    placed = slots(KNOWN)
    assert taken(KNOWN) == KNOWN
    assert taken(placed) == placed
    more = slots(with_device(with_device(KNOWN, replace(DISK, id="new")), VsockConfig()))
    assert taken(more, VsockConfig(), DISK) == more
    assert taken(more, VsockConfig(), DISK, known=placed) == more
    less = without_device(without_device(placed, "disk0"), "rng")
    assert taken(less) == less
    assert taken(less, known=placed) == less
    assert [disk.id for disk in less.disks] == ["disk1"]
    again = with_device(less, replace(KNOWN.disks[0], id="disk0", pci_device_id=9))
    assert taken(again, KNOWN.disks[0], known=less) == again


def test_it_grows_and_shrinks() -> None:
    grown = KNOWN.with_changes(
        {"cpus": replace(KNOWN.cpus, boot=3), "memory": replace(KNOWN.memory, hotplugged_size=64 << 20)}
    )
    assert taken(grown) == grown
    assert taken(KNOWN, known=grown) == KNOWN


def test_a_console_comes_and_goes() -> None:
    off = slots(KNOWN)
    on = slots(KNOWN.with_changes({"console": ConsoleConfig()}))
    assert taken(off, known=on) == off
    assert taken(slots(with_device(off, ConsoleConfig())), ConsoleConfig(), known=off).console.mode is ConsoleMode.NULL
    with pytest.raises(SnapshotError, match=r"config\.console"):
        taken(on, known=off)


LIES: dict[str, Any] = {
    "another image": {"disks": (DiskConfig(path=Path("/etc/shadow")), KNOWN.disks[1])},
    "an image that was not asked for": {"disks": (*KNOWN.disks, DiskConfig(path=Path("/etc/shadow")))},
    "an image twice": {"disks": (*KNOWN.disks, KNOWN.disks[0])},
    "what it may only read it may write": {"disks": (KNOWN.disks[0], replace(KNOWN.disks[1], readonly=False))},
    "another order": {"disks": KNOWN.disks[::-1]},
    "another kernel": {"payload": PayloadConfig(kernel=Path("/etc/shadow"))},
    "another interface": {"nets": (NetConfig(tap="eth0"),)},
    "another source": {"rng": RngConfig(src=Path("/etc/shadow"))},
    "a device of another kind": {"vsock": VsockConfig(socket=Path("/tmp/v"))},
    "a console at another place": {"serial": ConsoleConfig(ConsoleMode.FILE, Path("/etc/passwd"))},
    "another name": {"name": "other"},
    "more memory": {"memory": replace(KNOWN.memory, size=256 << 20)},
    "more processors at most": {"cpus": replace(KNOWN.cpus, max=8)},
}


@pytest.mark.parametrize("lie", list(LIES))
def test_what_cannot_have_become_of_it_is_refused(lie: str) -> None:
    with pytest.raises(SnapshotError, match="config"):
        taken(KNOWN.with_changes(LIES[lie]))


@pytest.mark.parametrize(
    "change",
    [
        {"disks": 7},
        {"disks": [7]},
        {"disks": [{}]},
        {"rng": 7},
        {"cpus": 7},
        {"cpus": {**told(KNOWN)["cpus"], "boot": 77}},
        {"cpus": {**told(KNOWN)["cpus"], "boot": "2"}},
        {"memory": None},
        {"memory_zones": [{}]},
        {"memory_zones": 7},
        {"more": 7},
        {"disks": [{**told(slots(KNOWN))["disks"][0], "id": "\x1b[6n"}]},
        {"disks": [{**told(slots(KNOWN))["disks"][0], "pci_device_id": 77}]},
    ],
    ids=str,
)
def test_what_is_none_is_refused(change: Any) -> None:
    with pytest.raises(SnapshotError, match="config"):
        config_of(KNOWN, (), {**told(KNOWN), **change})


def test_many_devices_are_looked_at_in_no_time() -> None:
    many = KNOWN.with_changes({"disks": tuple(DiskConfig(path=Path(f"/images/{n}")) for n in range(30)) * 10})
    assert taken(many, known=many) == many


def test_a_console_is_where_it_was_to_be() -> None:
    file = ConsoleConfig(ConsoleMode.FILE, Path("/run/console"))
    assert place_of(ConsoleConfig(), "") == ""
    assert place_of(file, "/run/console") == "/run/console"
    assert place_of(ConsoleConfig(ConsoleMode.PTY), "/dev/pts/7") == "/dev/pts/7"
    for config, lie in (
        (ConsoleConfig(), "/etc/passwd"),
        (file, "/etc/passwd"),
        (file, "/dev/pts/7"),
        (ConsoleConfig(ConsoleMode.PTY), "/dev/pts/../sda"),
        (ConsoleConfig(ConsoleMode.PTY), "/dev/pts/7\n"),
    ):
        with pytest.raises(SnapshotError, match="a console is at"):
            place_of(config, lie)
