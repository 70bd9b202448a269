"""PCI devices of the nested host: which they are, and which driver has them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

PCI = Path("/sys/bus/pci")


def devices_of_class(prefix: str) -> list[Path]:
    """sysfs directories of the devices whose class code starts so, as in 0x0108."""
    return [d for d in sorted((PCI / "devices").iterdir()) if (d / "class").read_text().startswith(prefix)]


def give_to(device: Path, driver: str) -> None:
    """Take it from the driver that has it."""
    (device / "driver_override").write_text(f"{driver}\n")
    if (device / "driver").exists():
        (device / "driver/unbind").write_text(device.name)
    (PCI / "drivers_probe").write_text(device.name)
    assert (device / "driver").resolve().name == driver


def interfaces(device: Path) -> list[Path]:
    """Network interfaces of a card, if a driver has it."""
    return sorted([*device.glob("net/*"), *device.glob("virtio*/net/*")])


def network_card(mac: str) -> Path:
    """The card with this MAC address, its own driver's. Fails the test where there is none."""
    subprocess.run(["modprobe", "-a", "virtio_net", "vmxnet3", "vfio-pci"], check=True)
    for device in devices_of_class("0x0200"):
        if any((i / "address").read_text().strip() == mac for i in interfaces(device)):
            return device
    pytest.fail(f"this host has no network card {mac}: it is the vfio profile's")
