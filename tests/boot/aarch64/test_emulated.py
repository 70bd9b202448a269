"""A stock Debian kernel for arm64 finds in our tree all that QEMU's machine has, and boots to our init."""

from __future__ import annotations

import gzip
import time
from pathlib import Path

import pytest

from aiovmm.architecture import AARCH64
from aiovmm.boot.aarch64 import CpuTopology
from aiovmm.boot.pci import EndpointRange, VirtioIommu
from aiovmm.errors import ImageError
from aiovmm.image import KernelFiles, build_initramfs, debian_busybox, debian_kernel
from tests.boot.aarch64.images import zboot
from tests.boot.aarch64.virt import boot, hardware, press_power_button
from tests.debian.stock import stock_kernel_or_skip

pytestmark = pytest.mark.timeout(1200)

SCRIPT = r"""
say() { echo "$1=$(shift; "$@" 2>&1 | tr '\n\0' '  ')"; }
say model cat /proc/device-tree/model
say cmdline cat /proc/cmdline
say cpus cat /sys/devices/system/cpu/online
say memory sed -n 's/MemTotal: *//p' /proc/meminfo
say consoles cat /proc/consoles
say amba ls /sys/bus/amba/devices
say seconds cat /sys/class/rtc/rtc0/since_epoch
say pci ls /sys/bus/pci/devices
say random sh -c 'dd if=/dev/hwrng bs=16 count=1 2>/dev/null | wc -c'
say messages grep -cE 'ITS-(PCI-)?MSI' /proc/interrupts
say platform ls /sys/bus/platform/devices
say log sh -c "dmesg | grep -iE 'KASLR|crng init|perfevents|PSCIv|violation|of_irq_parse'"
say cores sh -c 'cat /sys/devices/system/cpu/cpu*/topology/core_id'
say packages sh -c 'cat /sys/devices/system/cpu/cpu*/topology/physical_package_id'
say groups sh -c 'for d in /sys/kernel/iommu_groups/*/devices/*; do echo ${d##*/}; done'
say seed sh -c 'hexdump -v /proc/device-tree/chosen/rng-seed | head -n 1'
"""


@pytest.fixture(scope="module")
def debian() -> tuple[KernelFiles, Path]:
    """Its kernel and busybox for arm64."""
    try:
        return debian_kernel(arch=AARCH64), debian_busybox(arch=AARCH64)
    except ImageError as exc:
        pytest.skip(f"no Debian kernel for arm64: {exc}")


@pytest.fixture(scope="module")
def initramfs(debian: tuple[KernelFiles, Path]) -> bytes:
    files, busybox = debian
    return build_initramfs(busybox=busybox, modules=files.modules, run=SCRIPT).data


def facts(output: str) -> dict[str, str]:
    assert "aiovmm: run end status=0" in output, output[-3000:]
    lines = output.partition("aiovmm: run begin")[2].splitlines()
    return {key: value.strip() for line in lines for key, found, value in [line.partition("=")] if found}


def test_debian_kernel_finds_all_that_the_machine_has(
    debian: tuple[KernelFiles, Path], initramfs: bytes, tmp_path: Path
) -> None:
    cmdline = "console=ttyAMA0 quiet panic=-1"
    machine = hardware(2)
    output = boot(
        tmp_path,
        debian[0].kernel,
        machine,
        cmdline=cmdline,
        initrd=initramfs,
        devices=["virtio-rng-pci,disable-legacy=on"],
    )
    found = facts(output)
    assert found["model"] == "aiovmm"
    assert found["cmdline"] == cmdline
    assert found["cpus"] == "0-1"
    assert 440_000 < int(found["memory"].split()[0]) < 512 * 1024
    assert found["consoles"].startswith("ttyAMA0")
    assert found["amba"].split() == ["9000000.serial", "9010000.rtc", "9030000.gpio"]
    assert abs(int(found["seconds"]) - time.time()) < 3600, "the host's clock, however slow all of this was"
    assert found["pci"].split() == ["0000:00:00.0", "0000:00:01.0"]
    assert found["random"] == "16"
    assert int(found["messages"]) > 0, "messages go through the ITS"
    assert {"gpio-keys", "psci", "timer", "pmu", "3f000000.pcie"} <= set(found["platform"].split())
    assert "KASLR enabled" in found["log"]
    assert "crng init done" in found["log"], "the seed is enough"
    assert "PSCIv" in found["log"]
    assert "armv8_pmuv3" in found["log"]
    assert "violation" not in found["log"], "of the boot protocol"
    assert "of_irq_parse" not in found["log"], "interrupt pins are wired"
    assert "No such file" in found["seed"], "Linux takes it out of the tree"


@pytest.mark.thorough
@pytest.mark.parametrize("packed", ["gzip", "zboot"])
def test_what_was_packed_boots_as_well(
    packed: str, debian: tuple[KernelFiles, Path], initramfs: bytes, tmp_path: Path
) -> None:
    image = debian[0].kernel.read_bytes()
    path = tmp_path / "vmlinuz"
    path.write_bytes(gzip.compress(image, 1) if packed == "gzip" else zboot(image, "zstd"))
    output = boot(tmp_path, path, hardware(1), cmdline="console=ttyAMA0 quiet nokaslr", initrd=initramfs)
    assert facts(output)["cpus"] == "0"


@pytest.mark.thorough
def test_processors_are_laid_out_as_they_were_asked_for(
    debian: tuple[KernelFiles, Path], initramfs: bytes, tmp_path: Path
) -> None:
    machine = hardware(8, CpuTopology(threads=2, cores=2, clusters=1))
    output = boot(tmp_path, debian[0].kernel, machine, cmdline="console=ttyAMA0 quiet", initrd=initramfs)
    found = facts(output)
    assert found["cpus"] == "0-7"
    assert found["cores"].split() == ["0", "0", "1", "1", "0", "0", "1", "1"]
    assert found["packages"].split() == ["0", "0", "0", "0", "1", "1", "1", "1"]


@pytest.mark.thorough
def test_a_device_behind_an_iommu_that_the_kernel_has_no_driver_for(
    debian: tuple[KernelFiles, Path], initramfs: bytes, tmp_path: Path
) -> None:
    """Linux waits for the driver for ten seconds; our init then loads the device's own. (Debian's later kernels have one.)"""
    output = boot(
        tmp_path,
        debian[0].kernel,
        hardware(1, iommu=VirtioIommu(0, 2 << 3, (EndpointRange(0, 1 << 3, 1 << 3),))),
        cmdline="console=ttyAMA0 quiet",
        initrd=initramfs,
        devices=["virtio-rng-pci,addr=1,disable-legacy=on,iommu_platform=on", "virtio-iommu-pci,addr=2"],
    )
    assert facts(output)["random"] == "16"


@pytest.mark.thorough
def test_newest_kernel_and_what_is_behind_the_iommu(debian: tuple[KernelFiles, Path], tmp_path: Path) -> None:
    files = stock_kernel_or_skip("newest", AARCH64.debian)
    initramfs = build_initramfs(busybox=debian[1], modules=files.modules, run=SCRIPT)
    assert "virtio_iommu" in initramfs.modules
    machine = hardware(2, iommu=VirtioIommu(0, 2 << 3, (EndpointRange(0, 1 << 3, 1 << 3),)))
    output = boot(
        tmp_path,
        files.kernel,
        machine,
        cmdline="console=ttyAMA0 quiet",
        initrd=initramfs.data,
        devices=["virtio-rng-pci,addr=1,disable-legacy=on,iommu_platform=on", "virtio-iommu-pci,addr=2"],
    )
    found = facts(output)
    assert found["groups"] == "0000:00:01.0", "and not the IOMMU itself"
    assert found["random"] == "16"
    assert found["amba"].split() == ["9000000.serial", "9010000.rtc", "9030000.gpio"]


@pytest.mark.thorough
def test_power_button_is_heard_by_the_kernel_that_has_its_driver(
    debian: tuple[KernelFiles, Path], tmp_path: Path
) -> None:
    """gpio_keys is a module of Debian's full kernel, and found by what the tree says is there; the cloud kernel has none."""
    files = debian_kernel("linux-image-arm64", arch=AARCH64)
    initramfs = build_initramfs(busybox=debian[1], modules=files.modules)
    assert "gpio_keys" in initramfs.modules
    said = press_power_button(
        tmp_path,
        files.kernel,
        hardware(1),
        cmdline="console=ttyAMA0 quiet panic=-1",
        initrd=initramfs.data,
        after=b"# ",
    )
    assert b"reboot: Power down" in said
