"""From the command line's options to devices, and what is refused before there is a VM."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from aiovmm.config import (
    ConsoleConfig,
    ConsoleMode,
    DiskConfig,
    FsConfig,
    MemoryConfig,
    NetConfig,
    PayloadConfig,
    VMConfig,
)
from aiovmm.devices.virtio.vhost_user import VhostUserBlk, VhostUserFs, VhostUserNet
from aiovmm.errors import ConfigError
from aiovmm.machine import MachineParts
from aiovmm.machine.devices import plug_configured

SOCKET = Path("/run/vu.sock")
DISK = DiskConfig(vhost_user=True, socket=SOCKET, num_queues=2, queue_size=64)
NET = NetConfig(vhost_user=True, socket=SOCKET, num_queues=4)
FS = FsConfig(tag="home", socket=SOCKET)


def plugged(**changes: object) -> list[object]:
    config = VMConfig(PayloadConfig(Path("/kernel")), rng=None, console=ConsoleConfig(ConsoleMode.OFF))
    config = replace(config, **changes)  # type: ignore[arg-type]
    parts = MachineParts(config, Mock(), Mock(), Mock(), Mock(), Mock())
    plug_configured(parts)
    return [p.device for p in parts.plugged]


def test_each_option_makes_its_device() -> None:
    disk, net, fs = plugged(disks=(DISK,), nets=(NET,), fs=(FS,))
    assert isinstance(disk, VhostUserBlk)
    assert disk.queue_sizes == (64, 64)
    assert isinstance(net, VhostUserNet)
    assert net.queue_sizes == (256, 256, 256, 256, 64)
    assert isinstance(fs, VhostUserFs)
    assert fs.queue_sizes == (1024, 1024)
    assert fs.read_config(0, 40) == b"home".ljust(36, b"\0") + b"\1\0\0\0"


@pytest.mark.parametrize("devices", [{"disks": (DISK,)}, {"nets": (NET,)}, {"fs": (FS,)}])
def test_private_memory_is_refused(devices: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"memory\.shared: is off, and a vhost-user \w+ needs shared memory"):
        plugged(memory=MemoryConfig(shared=False), **devices)


@pytest.mark.parametrize("key", [{"serial": "abc"}, {"direct": True}], ids=lambda key: next(iter(key)))
def test_what_only_the_back_end_can_do_is_refused(key: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="back end"):
        replace(DISK, **key)  # type: ignore[arg-type]


@pytest.mark.parametrize("devices", [{"disks": (replace(DISK, iommu=True),)}, {"fs": (replace(FS, iommu=True),)}])
def test_no_back_end_stands_behind_the_iommu(devices: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="IOMMU"):
        plugged(**devices)
