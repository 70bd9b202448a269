"""All host devices of one VM: taken together, given back together."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiovmm.config import DeviceConfig, PayloadConfig, PlatformConfig, VMConfig
from aiovmm.errors import AiovmmError, ConfigError, HostError
from aiovmm.machine.passthrough import Passthrough
from tests.vfio.kernel import FakeKernel

FIRST, SECOND = "0000:01:00.0", "0000:02:00.0"


def passthrough(kernel: FakeKernel, *behind: bool, platform: PlatformConfig | None = None) -> Passthrough:
    """FIRST, SECOND, ...: whether each is behind the virtual IOMMU."""
    devices = tuple(
        DeviceConfig(path=kernel.path(address), iommu=iommu)
        for address, iommu in zip((FIRST, SECOND), behind, strict=False)
    )
    config = VMConfig(PayloadConfig(Path("kernel")), devices=devices, platform=platform or PlatformConfig())
    return Passthrough(config, kernel)


def refused(kernel: FakeKernel, *behind: bool) -> AiovmmError:
    together = passthrough(kernel, *behind)
    with pytest.raises(AiovmmError) as caught:
        together.open()
    together.close()
    assert not kernel.open_fds
    return caught.value


def containers(kernel: FakeKernel) -> int:
    return sum(kind == "container" for kind, _ in kernel.open_fds.values())


def test_devices_share_a_container(kernel: FakeKernel) -> None:
    kernel.add(FIRST, 7)
    kernel.add(SECOND, 8)
    together = passthrough(kernel, False, False)
    together.open()
    assert containers(kernel) == 1
    together.close()
    together.close()
    assert not kernel.open_fds


def test_a_device_behind_the_virtual_iommu_has_a_container_of_its_own(kernel: FakeKernel) -> None:
    kernel.add(FIRST, 7)
    kernel.add(SECOND, 8)
    together = passthrough(kernel, True, True)
    together.open()
    assert containers(kernel) == 2
    together.close()
    assert not kernel.open_fds


def test_a_segment_behind_the_iommu_has_its_devices_behind_it(kernel: FakeKernel) -> None:
    together = passthrough(kernel, False, platform=PlatformConfig(iommu_segments=(0,)))
    assert [place.iommu for place in together.places] == [True]


def test_what_was_taken_is_given_back_if_another_cannot_be_had(kernel: FakeKernel) -> None:
    kernel.add(FIRST, 7)
    kernel.add(SECOND, 8, driver="e1000e")
    error = refused(kernel, False, False)
    assert isinstance(error, HostError)
    assert "e1000e" in str(error)


def test_devices_of_one_group_cannot_reach_different_memory(kernel: FakeKernel) -> None:
    kernel.add(FIRST, 7)
    kernel.add(SECOND, 7)
    error = refused(kernel, True, False)
    assert isinstance(error, ConfigError)
    assert error.option == "device.iommu"
    assert FIRST in str(error)
    assert SECOND in str(error)
