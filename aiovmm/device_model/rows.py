"""The rows, in the order of the reference document. A device that comes adds its features and limits here."""

from __future__ import annotations

from pathlib import Path

from aiovmm.config import (
    ConsoleConfig,
    ConsoleMode,
    DeviceConfig,
    DiskConfig,
    FsConfig,
    NetConfig,
    PmemConfig,
    RngConfig,
    VsockConfig,
)
from aiovmm.config.options import KEYS
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

__all__ = ["device_rows"]

_PATH, _SOCKET = Path("/path"), Path("/socket")
_THEIRS = "those of the back end that the monitor knows"


def _switch(option: str) -> str:
    """With the keys that are not every device's."""
    place = KEYS["console"].keys() - KEYS["serial"].keys()
    return f"--{option} " + ",".join(f"{key}=" for key in KEYS[option] if key not in place and key[0] != "_")


def device_rows() -> tuple[DeviceRow, ...]:
    """All rows. Imports the devices, opens nothing."""
    return (*_legacy(), *_virtio(), *_vhost_user(), _vfio())


def _legacy() -> tuple[DeviceRow, ...]:
    return (
        DeviceRow(
            "Serial port",
            True,
            "on in `aiovmm run` and VMConfig",
            "--serial tty|pty|socket=PATH|file=PATH|null|off",
            back_ends="the program's streams always; terminal, pseudo-terminal, unix socket or file",
            limits="one 16550A at 0x3f8, IRQ 4 while OUT2 is set; a character timeout is due at once; "
            "input has back-pressure, and what the guest's driver clears unread while it sets the port up comes again: "
            "nothing typed ahead is lost; output never stalls the guest",
        ),
        DeviceRow(
            "RTC/CMOS",
            True,
            "on",
            "none: always on",
            back_ends="the host's clock",
            limits="alarm and update interrupts, IRQ 8; no daylight saving (DSE reads as 0)",
        ),
        DeviceRow(
            "I/O APIC",
            True,
            "on",
            "none: always on",
            limits="24 pins, version 0x11; local APICs are KVM's (split irqchip)",
        ),
        DeviceRow(
            "i8042 shutdown/reboot",
            True,
            "on beside ACPI",
            "none: always on",
            limits="a keyboard controller without keyboard that answers its self test; command 0xfe resets",
        ),
        DeviceRow(
            "ACPI shutdown/reboot",
            True,
            "on",
            "none: always on",
            limits="hardware-reduced: reset and sleep at port 0x600, PM timer at 0x608, power button by GED",
        ),
    )


def _virtio() -> tuple[DeviceRow, ...]:
    from aiovmm.devices.virtio import iommu
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
            "virtio-blk",
            is_wired(disks=(DiskConfig(path=_PATH),)),
            "off",
            _switch("disk"),
            blk_features(),
            "raw files and block devices, by io_uring or threads",
            f"{MAX_IN_FLIGHT} requests in flight a queue, {MAX_IN_FLIGHT_DEVICE} a device; no qcow2",
        ),
        DeviceRow(
            "virtio-console",
            is_wired(console=ConsoleConfig(ConsoleMode.NULL)),
            "on in `aiovmm run`, off in VMConfig",
            "--console tty|pty|socket=PATH|file=PATH|null|off,id=,pci_segment=,pci_device_id=,iommu=",
            console_features(),
            "as the serial port",
            "one port",
        ),
        DeviceRow(
            "virtio-iommu",
            has_iommu(),
            "off",
            "iommu=on in the option of any device",
            names_of(iommu.IommuDevice.features, wire),
            "stands before devices that are served here and those of the host (VFIO), not before vhost-user devices",
            f"48-bit addresses, pages of 4 KiB, {MAPPINGS_LIMIT} mappings; x86 drivers are in Linux 6.12, not in Debian's 6.1",
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


def _vfio() -> DeviceRow:
    return DeviceRow(
        "VFIO",
        is_wired(devices=(DeviceConfig(path=Path("/sys/bus/pci/devices/0000:00:01.0")),)),
        "off",
        _switch("device"),
        back_ends="a PCI function of the host that vfio-pci holds, in a container with an IOMMU of type 1",
        limits="MSI, MSI-X and INTx; no I/O BARs, expansion ROM or extended configuration space; all guest memory is locked",
    )
