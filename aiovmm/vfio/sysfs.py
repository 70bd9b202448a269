"""What sysfs says of a PCI device that is to be handed over: whether it can be, and if not, what is to be done.

Everything is looked at before a VM exists; nothing is changed.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from aiovmm.errors import ConfigError, HostError

__all__ = ["HostFunction", "device_file", "find", "find_file", "holders", "not_viable"]

_ADDRESS = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_FREE = ("vfio-pci", "pci-stub", "pcieport")  # drivers that do not keep a group from being handed over
_FILES = "vfio-dev"  # the directory of a device's own file


@dataclass(frozen=True)
class HostFunction:
    """A PCI function of the host, `address` as in 0000:00:04.0, in IOMMU group `group`; `fd`: a descriptor of its own file, where
    somebody has opened it."""

    address: str
    group: int
    fd: int | None = None


def find(path: Path, sysfs: Path) -> HostFunction:
    """The function whose sysfs directory `path` is. Raises HostError with a remedy if it cannot be handed over."""
    directory = _directory(path, sysfs)
    address = directory.name
    if not _ADDRESS.fullmatch(address) or not (directory / "vendor").exists():
        hint = "give the directory of one, like /sys/bus/pci/devices/0000:01:00.0; `lspci -D` lists them"
        raise HostError("looking for a PCI device (device.path)", errno.ENODEV, hint, str(path))
    group = directory / "iommu_group"
    if not group.exists():
        hint = (
            "it is in no IOMMU group: turn the IOMMU on in the firmware, boot the host with intel_iommu=on or "
            "amd_iommu=on, and see /sys/kernel/iommu_groups"
        )
        raise HostError(f"handing over {address}", errno.ENODEV, hint)
    driver = driver_of(directory)
    if driver != "vfio-pci":
        raise HostError(f"handing over {address}: {_held(driver)}", errno.EBUSY, bind_hint(address, driver))
    return HostFunction(address, int(group.resolve().name))


def find_file(fd: int, number: tuple[int, int], sysfs: Path) -> HostFunction:
    """The function that descriptor `fd`, of a character device with this (major, minor), is of. Raises ConfigError if it is none
    of VFIO's, HostError as `find`."""
    directory = (sysfs / f"dev/char/{number[0]}:{number[1]}").resolve().parent
    if directory.name != _FILES:
        hint = "open /dev/vfio/devices/vfioN, of which the device's directory in /sys has the name in vfio-dev"
        raise ConfigError("device.fd", f"{fd} is not of a VFIO device", hint)
    return replace(find(directory.parent, sysfs), fd=fd)


def device_file(function: HostFunction, sysfs: Path) -> str:
    """The file that VFIO has for `function` itself. Raises HostError where it has none."""
    for entry in (sysfs / "bus/pci/devices" / function.address / _FILES).glob("vfio*"):
        return f"/dev/vfio/devices/{entry.name}"
    hint = "leave out platform.iommufd: the kernel of this host has no CONFIG_VFIO_DEVICE_CDEV (Linux 6.6 with iommufd)"
    raise HostError(f"looking for the file of {function.address} alone", errno.ENODEV, hint)


def driver_of(directory: Path) -> str:
    """The driver that holds the device in `directory`, or an empty text."""
    link = directory / "driver"
    return link.resolve().name if link.exists() else ""


def bind_hint(address: str, driver: str) -> str:
    """The commands that give `address` to vfio-pci."""
    device = f"/sys/bus/pci/devices/{address}"
    unbind = f"echo {address} > {device}/driver/unbind; " if driver else ""
    return (
        f"`modprobe vfio-pci; echo vfio-pci > {device}/driver_override; {unbind}"
        f"echo {address} > /sys/bus/pci/drivers_probe` gives it to vfio-pci"
    )


def holders(function: HostFunction, sysfs: Path) -> list[str]:
    """The devices of its group that the host still uses."""
    devices = sysfs / "kernel/iommu_groups" / str(function.group) / "devices"
    held = []
    for entry in sorted(devices.iterdir()) if devices.exists() else []:
        driver = driver_of(entry.resolve())
        if driver and driver not in _FREE:
            held.append(f"{entry.name} ({driver})")
    return held


def not_viable(function: HostFunction, sysfs: Path) -> HostError:
    """Why the group of `function` cannot be handed over: which of its other devices the host still uses."""
    names = ", ".join(holders(function, sysfs)) or "others of the group"
    hint = f"the host still uses {names} of IOMMU group {function.group}: give them to vfio-pci too, all or none of a group"
    return HostError(f"handing over {function.address}", errno.EBUSY, hint)


def _held(driver: str) -> str:
    return f"the host's driver {driver} holds it" if driver else "no driver holds it"


def _directory(path: Path, sysfs: Path) -> Path:
    """`path` without links; a bare address is one below sysfs."""
    if _ADDRESS.fullmatch(str(path)):
        path = sysfs / "bus/pci/devices" / path
    return Path(os.path.realpath(path))  # which has an answer for links in a circle, too
