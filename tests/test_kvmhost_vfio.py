"""The profile for device passthrough: an IOMMU, and an NVMe drive that vfio-pci takes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kvmhost.host import Host

pytestmark = [pytest.mark.timeout(600), pytest.mark.thorough]

_TAKE_DRIVE = """set -e
drive=$(lspci -D -d ::0108 | cut -d' ' -f1)
cd /sys/bus/pci
echo vfio-pci >"devices/$drive/driver_override"
echo "$drive" >"devices/$drive/driver/unbind"
echo "$drive" >drivers_probe
basename "$(readlink "devices/$drive/driver")"
ls "/dev/vfio/$(basename "$(readlink "devices/$drive/iommu_group")")"
"""


@pytest.fixture
def vfio_host(kvmhost_possible: None) -> Iterator[Host]:
    host = Host("vfio")
    with host.exclusive():
        host.ensure_started()
        yield host
        host.stop()


def test_vfio_takes_the_nvme_drive(vfio_host: Host) -> None:
    driver, group = vfio_host.run(["sh", "-c", _TAKE_DRIVE], timeout=60).check().stdout.decode().split()
    assert driver == "vfio-pci"
    assert group.startswith("/dev/vfio/")
    assert vfio_host.run(["test", "-c", "/dev/kvm"]).status == 0
