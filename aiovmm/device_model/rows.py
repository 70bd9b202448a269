"""The rows, in the order of the reference document. A device that comes adds its features and limits here, or, if it is one of
an architecture's own, in its room.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from aiovmm import architecture
from aiovmm.architecture import Architecture
from aiovmm.config import (
    BalloonConfig,
    ConsoleConfig,
    ConsoleMode,
    DeviceConfig,
    DiskConfig,
    FsConfig,
    GenericVhostUserConfig,
    HotplugMethod,
    MemoryConfig,
    NetConfig,
    PmemConfig,
    RngConfig,
    RtcConfig,
    VsockConfig,
    WatchdogConfig,
)
from aiovmm.config.options import KEYS
from aiovmm.device_model.architecture import room_of
from aiovmm.device_model.features import (
    blk_features,
    console_features,
    names_of,
    net_features,
    vhost_blk_features,
    vhost_net_features,
)
from aiovmm.device_model.row import DeviceRow
from aiovmm.device_model.wired import has_iommu, is_wired

__all__ = ["all_rows", "device_rows"]

_PATH, _SOCKET = Path("/path"), Path("/socket")
_THEIRS = "those of the back end that the monitor knows"


def _switch(option: str) -> str:
    """With the keys that are not every device's."""
    place = KEYS["console"].keys() - KEYS["serial"].keys()
    keys = ",".join(f"{key}=" for key in KEYS[option] if key not in place and key[0] != "_")
    return f"--{option} {keys}".strip()


def device_rows(of: Architecture | None = None) -> tuple[DeviceRow, ...]:
    """All rows for guests of an architecture, the host's if none is given. Imports the devices, opens nothing. Raises HostError
    on a host of another."""
    of = of or architecture.host()
    room = room_of(of)
    rows = (*room.board_rows(), *_virtio(), *_vhost_user(), _vfio(), *_small())
    return tuple(dataclasses.replace(row, architecture=of.title) for row in rows)


def all_rows() -> tuple[DeviceRow, ...]:
    """Those of all architectures, one after the other."""
    return tuple(row for of in architecture.ALL for row in device_rows(of))


def _virtio() -> tuple[DeviceRow, ...]:
    from aiovmm.devices.virtio import iommu, mem
    from aiovmm.devices.virtio.balloon import BalloonDevice
    from aiovmm.devices.virtio.balloon import protocol as balloon
    from aiovmm.devices.virtio.blk.device import MAX_IN_FLIGHT, MAX_IN_FLIGHT_DEVICE
    from aiovmm.devices.virtio.iommu import wire
    from aiovmm.devices.virtio.iommu.domains import MAPPINGS_LIMIT
    from aiovmm.devices.virtio.pmem import ALIGNMENT
    from aiovmm.devices.virtio.pmem import device as pmem
    from aiovmm.devices.virtio.rng import REQUEST_LIMIT
    from aiovmm.devices.virtio.rng import device as rng
    from aiovmm.devices.virtio.vsock import device as vsock

    return (
        DeviceRow(
            "virtio-balloon",
            is_wired(balloon=BalloonConfig()),
            "off",
            _switch("balloon"),
            names_of(BalloonDevice(1 << 20, deflate_on_oom=True, free_page_reporting=True).features, balloon),
            "guest memory that is private or shared, not huge pages of the host's reserve",
            "not with devices of the host, for which all memory is locked; names physical addresses behind the IOMMU, too",
        ),
        DeviceRow(
            "virtio-blk",
            is_wired(disks=(DiskConfig(path=_PATH),)),
            "off",
            _switch("disk"),
            blk_features(),
            "raw files and block devices, by io_uring or threads",
            f"{MAX_IN_FLIGHT} requests in flight a queue, {MAX_IN_FLIGHT_DEVICE} a device; other formats than raw are QEMU's",
        ),
        DeviceRow(
            "virtio-console",
            is_wired(console=ConsoleConfig(ConsoleMode.NULL)),
            "on in `aiovmm run`, off in VMConfig",
            "--console tty|pty|socket=PATH|file=PATH|null|off,id=,pci_segment=,pci_device_id=,iommu=",
            console_features(),
            "as the serial port",
            "one port; input has back-pressure, and waits until the driver has printed, or has offered buffers and left them "
            "alone for a second, since Linux throws away what comes before the port is joined to a terminal: nothing typed "
            "ahead is lost",
        ),
        DeviceRow(
            "virtio-iommu",
            has_iommu(),
            "off",
            "iommu=on in the option of any device",
            names_of(iommu.IommuDevice.features, wire),
            "stands before devices that are served here and those of the host (VFIO), not before vhost-user devices",
            f"48-bit addresses, pages of 4 KiB, {MAPPINGS_LIMIT} mappings; drivers are in Debian's Linux from 6.12 on, "
            "not in its 6.1",
        ),
        DeviceRow(
            "virtio-mem",
            is_wired(memory=MemoryConfig(hotplug_size=128 << 20, hotplug_method=HotplugMethod.VIRTIO_MEM)),
            "off",
            "--memory hotplug_method=virtio-mem,hotplug_size=,hotplugged_size=; --memory-zone hotplug_size=,hotplugged_size=",
            names_of(mem.MemDevice.features, mem.protocol),
            "guest memory that is private or shared; what is unplugged is given back to the host",
            "blocks of 2 MiB; where the guest has devices of the host, those that are plugged are locked",
        ),
        DeviceRow(
            "virtio-net",
            is_wired(nets=(NetConfig(),)),
            "off",
            _switch("net"),
            net_features(),
            "TAP (made, by name, or by descriptor), unix socket by descriptor",
            "128 queue pairs",
        ),
        DeviceRow(
            "virtio-pmem",
            is_wired(pmems=(PmemConfig(file=_PATH),)),
            "off",
            _switch("pmem"),
            names_of(pmem.PmemDevice.features, pmem),
            "a file or block device, mapped shared, or privately with discard_writes=on",
            f"size a multiple of {ALIGNMENT >> 20} MiB",
        ),
        DeviceRow(
            "virtio-rng",
            is_wired(rng=RngConfig()),
            "on",
            _switch("rng"),
            names_of(rng.RngDevice.features, rng),
            "a character device or file; /dev/urandom",
            f"{REQUEST_LIMIT >> 10} KiB a request",
        ),
        DeviceRow(
            "virtio-vsock",
            is_wired(vsock=VsockConfig()),
            "off",
            _switch("vsock"),
            names_of(vsock.VsockDevice.features, vsock),
            "the program's streams; a unix socket that speaks the hybrid protocol",
            f"stream sockets; {VsockConfig.max_connections} connections of {VsockConfig.buffer_size >> 10} KiB each way, "
            "fewer where the guest's share of the process's descriptors (three quarters of ulimit -n, for all guests) is used up",
        ),
    )


def _vhost_user() -> tuple[DeviceRow, ...]:
    disk = DiskConfig(vhost_user=True, socket=_SOCKET)
    net = NetConfig(vhost_user=True, socket=_SOCKET)
    return (
        DeviceRow(
            "vhost-user-blk",
            is_wired(disks=(disk,)),
            "off",
            "--disk vhost_user=on,socket=,num_queues=,queue_size=",
            vhost_blk_features(),
            f"a process at a unix socket (QEMU's storage daemon, SPDK, one of your own); features are {_THEIRS}",
            "not with --memory shared=off; a back end that dies is waited for",
        ),
        DeviceRow(
            "vhost-user-fs",
            is_wired(fs=(FsConfig(tag="share", socket=_SOCKET),)),
            "off",
            _switch("fs"),
            back_ends="virtiofsd or its like at a unix socket",
            limits="not with --memory shared=off; no DAX; a back end that dies takes the mount with it",
        ),
        DeviceRow(
            "vhost-user-net",
            is_wired(nets=(net,)),
            "off",
            "--net vhost_user=on,socket=,mac=,num_queues=,queue_size=",
            vhost_net_features(),
            f"a process at a unix socket (DPDK, Open vSwitch, one of your own); features are {_THEIRS}",
            "not with --memory shared=off; a back end that dies is waited for",
        ),
    )


def _small() -> tuple[DeviceRow, ...]:
    from aiovmm.devices.virtio.watchdog import TIMEOUT

    generic = GenericVhostUserConfig(device_type=4, socket=_SOCKET, queue_sizes=(64,))
    return (
        DeviceRow(
            "vhost-user-generic",
            is_wired(generic_vhost_user=(generic,)),
            "off",
            "--generic-vhost-user device_type=,socket=,queue_sizes=",
            back_ends="a process at a unix socket that serves a virtio device of any kind",
            limits="not with --memory shared=off; a back end that dies takes the device with it",
        ),
        DeviceRow(
            "virtio-rtc",
            is_wired(rtc=RtcConfig()),
            "off",
            _switch("rtc"),
            back_ends="the host's clock",
            limits="one clock, UTC; no alarm, no cross-timestamps; drivers are in Linux from 6.16 on",
        ),
        DeviceRow(
            "virtio-watchdog",
            is_wired(watchdog=WatchdogConfig()),
            "off",
            _switch("watchdog"),
            limits=f"{TIMEOUT:g} s after the last ping; a pause does not count; Linux has no driver of its own",
        ),
        DeviceRow(
            "pvpanic",
            True,
            "off",
            _switch("pvpanic"),
            limits="on PCI; where it is there, what the console prints is not taken for a panic",
        ),
    )


def _vfio() -> DeviceRow:
    return DeviceRow(
        "VFIO",
        is_wired(devices=(DeviceConfig(path=Path("/sys/bus/pci/devices/0000:00:01.0")),)),
        "off",
        _switch("device"),
        back_ends="a PCI function of the host that vfio-pci holds, in a container with an IOMMU of type 1, or in an iommufd",
        limits="MSI, MSI-X and INTx; no I/O BARs, expansion ROM or extended configuration space; all guest memory is locked",
    )
