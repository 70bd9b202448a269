"""The PCI tree as a guest sees it: several segments, each with its bridge, and every device usable."""

from __future__ import annotations

import itertools
import re
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from aiovmm import VM, ConsoleConfig, DiskConfig, PlatformConfig, RngConfig
from aiovmm.image import build_initramfs
from aiovmm.pci.plan import SegmentPlan
from tests.system.conftest import GUESTS, RELEASES, Guests
from tests.system.guest import appears, prompt, shell
from tests.system.shown import SHOWN

LSPCI = Path("/usr/bin/lspci")
SEGMENTS = 4
_LEVEL = re.compile(r"fasteoi|\bLevel\b")  # of x86, of a GIC


@dataclass
class Function:
    """One `lspci -vvv -nn -D` paragraph."""

    address: str
    text: str

    @property
    def ids(self) -> str:
        """vendor:device."""
        return str(re.findall(r"\[([0-9a-f]{4}:[0-9a-f]{4})\]", self.text.splitlines()[0])[-1])

    @property
    def device_class(self) -> str:
        found = re.search(r"\[([0-9a-f]{4})\]:", self.text)
        assert found is not None
        return found[1]

    @property
    def regions(self) -> list[tuple[int, int]]:
        """(address, size) of its memory BARs."""
        found = re.findall(r"Region \d: Memory at ([0-9a-f]+) .*\[size=(\d+)([KM]?)\]", self.text)
        units = {"": 1, "K": 1 << 10, "M": 1 << 20}
        return [(int(a, 16), int(n) * units[unit]) for a, n, unit in found]


@pytest.fixture(scope="module")
def with_lspci(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An initramfs for each release, with lspci of the host and the libraries that it needs."""
    if not LSPCI.exists():
        pytest.skip("lspci is not installed (apt-get install pciutils)")
    listed = subprocess.run(["ldd", LSPCI], capture_output=True, text=True, check=True).stdout
    libraries = re.findall(r"(/\S+) \(0x", listed)
    files = {str(path): Path(path).resolve() for path in ["/usr/bin/lspci", *libraries]}
    found = {}
    for release in RELEASES:
        image = build_initramfs(busybox=GUESTS / "bin/busybox", modules=GUESTS / release / "modules", files=files)
        found[release] = tmp_path_factory.mktemp("lspci") / f"{release}.cpio"
        found[release].write_bytes(image.data)
    return found


@pytest.mark.parametrize("release", RELEASES)
async def test_every_segment_has_a_sane_tree(
    guests: Guests, with_lspci: dict[str, Path], tmp_path: Path, release: str
) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(b"segment two".ljust(1 << 20, b"\0"))
    config = guests.config(
        release,
        rng=RngConfig(pci_segment=1),
        console=ConsoleConfig(),
        disks=(DiskConfig(path=disk, pci_segment=2),),
        platform=PlatformConfig(num_pci_segments=SEGMENTS),
    )
    config = replace(config, payload=replace(config.payload, initramfs=with_lspci[release]))
    async with VM(config) as vm:
        plans = [segment.plan for segment in vm.machine.pci.root.segments]
        await vm.start()
        await prompt(vm)
        functions = parse(await shell(vm, "/usr/bin/lspci -vvv -nn -D 2>/dev/null"))  # it misses modules.builtin
        interrupts = await shell(vm, "cat /proc/interrupts")
        log = await shell(vm, "dmesg")
        assert (await shell(vm, "head -c 11 /dev/vda")) == "segment two"
        assert (await shell(vm, "head -c 1000 /dev/hwrng | wc -c")).strip() == "1000"
        assert (await shell(vm, "cat /sys/bus/pci/devices/*/msi_irqs/* | sort -u")).split() == ["msix"]

    assert {f.address: f.ids for f in functions} == {
        "0000:00:00.0": "8086:0d57",
        "0000:00:01.0": "1af4:1043",
        "0001:00:00.0": "8086:0d57",
        "0001:00:01.0": "1af4:1044",
        "0002:00:00.0": "8086:0d57",
        "0002:00:01.0": "1af4:1042",
        "0003:00:00.0": "8086:0d57",
    }
    for f in functions:
        if f.ids == "8086:0d57":
            assert f.device_class == "0600"
        else:
            check_virtio(f)
    check_addresses(functions, plans)
    assert {line.split()[-1] for line in interrupts.splitlines() if "virtio" in line} >= {"virtio0-config"}
    assert not pci_problems(log)


@pytest.mark.thorough
@pytest.mark.parametrize("release", RELEASES)
async def test_as_many_segments_as_there_can_be(guests: Guests, tmp_path: Path, release: str) -> None:
    """The guest finds the bridge of each, and the devices in the first, one in the middle and the last. Where guests can be told,
    one comes to another."""
    disks = []
    for segment in (0, 47, 95):
        image = tmp_path / f"{segment}.raw"
        image.write_bytes(b"in %d;" % segment + bytes(1 << 20))
        disks.append(DiskConfig(path=image, pci_segment=segment))
    config = guests.config(
        release, rng=RngConfig(pci_segment=94), disks=tuple(disks), platform=PlatformConfig(num_pci_segments=96)
    )
    late = tmp_path / "late.raw"
    late.write_bytes(b"in 60;" + bytes(1 << 20))
    async with VM(config) as vm:
        await vm.start()
        await prompt(vm)
        found = sorted((await shell(vm, "ls /sys/bus/pci/devices")).split())  # it lists them in columns
        assert [name for name in found if name.endswith(":00.0")] == [f"{n:04x}:00:00.0" for n in range(96)]
        assert [name for name in found if not name.endswith(":00.0")] == [f"{n:04x}:00:01.0" for n in (0, 47, 94, 95)]
        assert (await shell(vm, "for d in a b c; do head -c 6 /dev/vd$d; done")).replace(
            "\0", ""
        ) == "in 0;in 47;in 95;"
        assert (await shell(vm, "head -c 1000 /dev/hwrng | wc -c")).strip() == "1000"
        if SHOWN.hotplug:
            await vm.add(DiskConfig(path=late, pci_segment=60), timeout=120)
            await appears(vm, "/dev/vdd")
            assert (await shell(vm, "head -c 6 /dev/vdd")) == "in 60;"
        assert not pci_problems(await shell(vm, "dmesg"))


@pytest.mark.parametrize("release", RELEASES)
async def test_a_guest_without_messages_is_interrupted_by_pins(guests: Guests, tmp_path: Path, release: str) -> None:
    disk, other = tmp_path / "disk.raw", tmp_path / "other.raw"
    disk.write_bytes(b"by its pin".ljust(8 << 20, b"\0"))
    other.write_bytes(b" or another".ljust(1 << 20, b"\0"))
    config = guests.config(
        release,
        rng=RngConfig(),
        console=ConsoleConfig(),
        disks=(DiskConfig(path=disk), DiskConfig(path=other, pci_segment=1)),
        platform=PlatformConfig(num_pci_segments=2),
    )
    config = replace(config, payload=replace(config.payload, cmdline=f"{config.cmdline} pci=nomsi"))
    async with VM(config) as vm:
        await vm.start()
        await prompt(vm)
        assert (await shell(vm, "head -c 10 /dev/vda; head -c 11 /dev/vdb")) == "by its pin or another"
        assert (await shell(vm, "dd if=/dev/zero of=/dev/vda bs=64k count=64 conv=fsync 2>/dev/null; echo $?")) == "0\n"
        assert (await shell(vm, "head -c 1000 /dev/hwrng | wc -c")).strip() == "1000"
        lines = [line for line in (await shell(vm, "cat /proc/interrupts")).splitlines() if "virtio" in line]
    assert lines
    assert all(SHOWN.pin in line and _LEVEL.search(line) for line in lines), lines
    assert len({name for line in lines for name in re.findall(r"virtio\d", line)}) == 4
    assert disk.read_bytes()[:10] == bytes(10)


def parse(text: str) -> list[Function]:
    """Paragraphs of lspci; fails on what lspci itself marks as wrong."""
    for mark in (
        "access denied",
        "<ignored>",
        "<unassigned>",
        "[virtual]",
        "[disabled]",
        "!!!",
        "<chain looped>",
        "error",
    ):
        assert mark not in text
    return [Function(p.split()[0], p) for p in re.split(r"\n\n+", text.strip())]


def check_virtio(f: Function) -> None:
    """A modern virtio function whose driver has enabled it, with MSI-X."""
    assert "Kernel driver in use: virtio-pci" in f.text
    assert re.search(r"Control: I/O[+-] Mem\+ BusMaster\+", f.text)
    assert re.search(r"MSI-X: Enable\+ Count=\d+ Masked-", f.text)
    for part in ("CommonCfg", "Notify", "ISR", "DeviceCfg"):
        assert f"VirtIO: {part}" in f.text
    assert len(f.regions) == 1


def check_addresses(functions: list[Function], plans: list[SegmentPlan]) -> None:
    """Each BAR is aligned to its size, in a window of its own segment, and overlaps no other."""
    taken = []
    for f in functions:
        own = plans[int(f.address[:4])]
        for address, size in f.regions:
            assert address % size == 0
            assert any(window.holds(address, size) for window in own.windows)
            taken.append((address, size))
    taken.sort()
    assert all(a + n <= b for (a, n), (b, _) in itertools.pairwise(taken))


def pci_problems(log: str) -> list[str]:
    """Lines about PCI that the kernel does not print when all is well."""
    bad = re.compile(
        r"no space|failed|conflict|invalid|can't|cannot|unable|error|firmware bug|overlap|no compatible", re.IGNORECASE
    )
    about = re.compile(r"\bpci|PCI|MMCONFIG|ECAM|virtio|acpi PNP0A0[38]")
    return [line for line in log.splitlines() if about.search(line) and bad.search(line)]
