"""Devices that come and go while a VM is there; the test plays the part of the guest's kernel on the bus."""

from __future__ import annotations

import asyncio
import struct
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from aiovmm import (
    VM,
    BalloonConfig,
    ConfigError,
    Console,
    ConsoleConfig,
    ConsoleMode,
    DebugConsoleConfig,
    DeviceConfig,
    DiskConfig,
    EventKind,
    FsConfig,
    GuestFault,
    HotplugError,
    HotplugMethod,
    HotplugTimeout,
    MemoryConfig,
    PlatformConfig,
    PmemConfig,
    PvpanicConfig,
    RebootPolicy,
    RngConfig,
    StateError,
    UsageError,
    VsockConfig,
)
from aiovmm.bus import Space
from aiovmm.console.places import Places
from aiovmm.devices.virtio.blk import BlkDevice
from aiovmm.devices.virtio.rng import RngDevice
from aiovmm.machine.architecture import board_of_host
from aiovmm.native import ffi
from aiovmm.pci.root import PciAddress
from tests.open_files import descriptors
from tests.vm.guest import config, counts_on, event, until
from tests.vm.hotplug_guest import LONG, eject, let_go, look, notified, vendor

pytestmark = pytest.mark.skipif(not board_of_host().has_ports, reason="a PC's registers")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


def mappings() -> str:
    return Path("/proc/self/maps").read_text()


async def test_a_disk_comes_and_goes(image: Path) -> None:
    async with VM(config("s")) as vm:
        await vm.start()
        await counts_on(vm)
        before = descriptors()
        task = asyncio.ensure_future(vm.add(DiskConfig(path=image, serial="mine")))
        assert await look(vm) == [1]
        assert await task == "disk0"
        assert vm.device("disk0", BlkDevice) is vm.disks[0]
        assert vendor(vm, 1) == 0x1AF4
        assert vm.config.disks == (DiskConfig(path=image, serial="mine", id="disk0", pci_device_id=1),)
        gone = asyncio.ensure_future(vm.remove("disk0"))
        assert await let_go(vm) == [1]
        await gone
        assert vendor(vm, 1) == 0xFFFF
        assert not vm.disks
        assert not vm.config.disks
        assert descriptors() <= before
        await counts_on(vm)
    seen = [(e.kind, e.device) async for e in vm.events(from_start=True)]
    assert (EventKind.DEVICE_ADDED, "disk0") in seen
    assert (EventKind.DEVICE_REMOVED, "disk0") in seen


async def test_what_others_are_configured_to_be_is_not_made_anew(image: Path) -> None:
    disk = DiskConfig(path=image, readonly=True)
    async with VM(config("s", disks=(disk,))) as vm:
        await vm.start()
        await vm.add(disk, timeout=0)
        before = vm.config
        await vm.add(disk, timeout=0)
        assert [one.id for one in vm.config.disks] == ["disk0", "disk1", "disk2"]
        assert all(one is other for one, other in zip(before.disks, vm.config.disks, strict=False))


async def test_a_guest_that_does_not_look_has_no_device(image: Path) -> None:
    async with VM(config("s")) as vm:
        await vm.start()
        before = descriptors()
        with pytest.raises(HotplugTimeout, match=r"adding 'disk0': the guest has not looked at it within 0\.05 s"):
            await vm.add(DiskConfig(path=image), timeout=0.05)
        assert vendor(vm, 1) == 0xFFFF
        assert not vm.disks
        assert not vm.config.disks
        assert descriptors() <= before
        await counts_on(vm)
        await vm.kill()
        told = {seen.kind async for seen in vm.events(from_start=True)}
    assert not told & {EventKind.DEVICE_ADDED, EventKind.DEVICE_REMOVED}, "it has never been there"


async def test_an_image_is_looked_at_where_it_may_take_its_time(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[threading.Thread] = []

    def slow(config: DiskConfig) -> None:
        looked.append(threading.current_thread())

    monkeypatch.setattr("aiovmm.devices.virtio.blk.opening.kind_of", slow)
    async with VM(config("s", disks=(DiskConfig(path=image, readonly=True),))) as vm:
        await vm.start()
        await vm.add(DiskConfig(path=image, readonly=True), timeout=0)
    assert len(looked) == 2
    assert threading.main_thread() not in looked


async def test_a_caller_that_gives_up_has_no_device_either(image: Path) -> None:
    async with VM(config("s")) as vm:
        await vm.start()
        task = asyncio.ensure_future(vm.add(DiskConfig(path=image)))
        await notified(vm)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not vm.disks
        assert vendor(vm, 1) == 0xFFFF


async def test_a_guest_that_does_not_let_go_keeps_it_until_it_does(image: Path) -> None:
    async with VM(config("s", disks=(DiskConfig(path=image),))) as vm:
        await vm.start()
        with pytest.raises(HotplugTimeout, match="has not let go of it within"):
            await vm.remove("disk0", timeout=0.05)
        assert vendor(vm, 1) == 0x1AF4
        assert vm.disks
        assert await let_go(vm) == [1]
        await event(vm, EventKind.DEVICE_REMOVED)
        assert not vm.disks


async def test_force_pulls_the_plug_and_tells_the_guest(image: Path) -> None:
    async with VM(config("s", disks=(DiskConfig(path=image),))) as vm:
        await vm.start()
        await vm.remove("disk0", timeout=0.05, force=True)
        assert vendor(vm, 1) == 0xFFFF
        assert await let_go(vm) == [1]
        assert not vm.disks
        await counts_on(vm)


async def test_a_slot_of_which_the_guest_has_not_let_go_is_not_given_to_another(image: Path) -> None:
    """It would let go of the other."""
    disk = DiskConfig(path=image, readonly=True)
    async with VM(config("s", disks=(disk,))) as vm:
        await vm.start()
        await vm.remove("disk0", timeout=0.01, force=True)
        await vm.add(disk, timeout=0)
        assert [vendor(vm, slot) for slot in (1, 2)] == [0xFFFF, 0x1AF4]
        assert await let_go(vm) == [1]
        assert [vendor(vm, slot) for slot in (1, 2)] == [0xFFFF, 0x1AF4]
        task = asyncio.ensure_future(vm.add(disk))
        assert 1 in await look(vm)
        await task
        assert [vendor(vm, slot) for slot in (1, 2)] == [0x1AF4, 0x1AF4]


async def test_a_guest_that_heeds_nothing_does_not_run_out_of_slots(image: Path) -> None:
    async with VM(config("s")) as vm:
        await vm.start()
        for _ in range(40):
            with pytest.raises(HotplugTimeout):
                await vm.add(DiskConfig(path=image, readonly=True), timeout=0.001)
        assert not vm.disks


async def test_a_guest_ejects_only_what_is_asked_of_it(image: Path) -> None:
    disk = DiskConfig(path=image, readonly=True)
    async with VM(config("s", disks=(disk, disk))) as vm:
        await vm.start()
        await eject(vm, 0xFFFF_FFFF)
        assert [vendor(vm, slot) for slot in (1, 2)] == [0x1AF4] * 2
        task = asyncio.ensure_future(vm.remove("disk1"))
        await notified(vm)
        await eject(vm, 0xFFFF_FFFF)
        await task
        assert [vendor(vm, slot) for slot in (0, 1, 2)] == [0x8086, 0x1AF4, 0xFFFF]
        await eject(vm, 0xFFFF_FFFF)
        assert [p.id for p in vm._plugged()] == ["disk0"]


async def test_what_is_plugged_stays_over_a_reset_and_what_is_asked_for_goes(image: Path) -> None:
    other = image.with_name("other.img")
    other.write_bytes(bytes(1 << 20))
    async with VM(config("s", on_reboot=RebootPolicy.RESTART, disks=(DiskConfig(path=image),))) as vm:
        await vm.start()
        await vm.add(DiskConfig(path=other, pci_device_id=9, id="late"), timeout=0)
        removal = asyncio.ensure_future(vm.remove("disk0", timeout=None))
        await notified(vm)
        vm.machine.bus.write(Space.PIO, 0x600, b"\x01")
        await event(vm, EventKind.REBOOTED)
        await asyncio.wait_for(removal, LONG)
        assert [vendor(vm, slot) for slot in (1, 9)] == [0xFFFF, 0x1AF4]
        assert vm.machine.devices.address("late") == PciAddress(0, 9)
        removal = asyncio.ensure_future(vm.remove("late"))
        assert await let_go(vm) == [9]
        await removal


async def test_a_guest_that_is_reset_while_it_should_look_finds_it(image: Path) -> None:
    async with VM(config("s", on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        task = asyncio.ensure_future(vm.add(DiskConfig(path=image), timeout=None))
        await notified(vm)
        vm.machine.bus.write(Space.PIO, 0x600, b"\x01")
        assert await asyncio.wait_for(task, LONG) == "disk0"
        await event(vm, EventKind.REBOOTED)
        assert vendor(vm, 1) == 0x1AF4


async def test_the_end_of_the_guest_answers_whoever_waits(image: Path) -> None:
    async with VM(config("s", disks=(DiskConfig(path=image),))) as vm:
        await vm.start()
        removal = asyncio.ensure_future(vm.remove("disk0", timeout=None))
        await notified(vm)
        await vm.kill("enough")
        with pytest.raises(StateError, match="the guest has ended"):
            await removal
        with pytest.raises(StateError, match="has ended"):
            await vm.add(RngConfig())


async def test_before_it_runs_and_while_it_is_paused(image: Path) -> None:
    async with VM(config("s")) as vm:
        assert await vm.add(DiskConfig(path=image)) == "disk0"
        await vm.remove("disk0")
        assert await vm.add(DiskConfig(path=image)) == "disk0"
        await vm.start()
        await vm.pause()
        assert await vm.add(VsockConfig(cid=7)) == "vsock"
        with pytest.raises(StateError, match="paused"):
            await vm.remove("vsock")
        await vm.resume()
        assert await look(vm) == [2]
        assert vm.vsock is not None


async def test_where_nothing_tells_a_guest_nothing_comes_and_nothing_goes_once_it_runs(image: Path) -> None:
    """As on arm64, whose device tree is of what is there at the start."""
    async with VM(config("s")) as vm:
        vm.machine.board.slots = None
        assert await vm.add(DiskConfig(path=image)) == "disk0"
        await vm.start()
        before = descriptors()
        for refused in (vm.add(VsockConfig(cid=7)), vm.remove("disk0")):
            with pytest.raises(UsageError, match=r"device tree of arm64 .* before start\(\)"):
                await refused
        assert descriptors() == before
        assert vm.device("disk0", BlkDevice) is not None
        await counts_on(vm)


async def test_devices_in_other_segments(image: Path) -> None:
    async with VM(config("s", platform=PlatformConfig(num_pci_segments=3))) as vm:
        await vm.start()
        task = asyncio.ensure_future(vm.add(DiskConfig(path=image, pci_segment=2)))
        assert await look(vm, 2) == [1]
        await task
        assert vm.machine.devices.address("disk0") == PciAddress(2, 1)
        task2 = asyncio.ensure_future(vm.remove("disk0"))
        assert await let_go(vm, 2) == [1]
        await task2


async def test_slot_0_of_a_further_segment_is_for_who_has_chosen_it(image: Path) -> None:
    disk = DiskConfig(path=image, readonly=True, pci_segment=1)
    first = replace(disk, pci_device_id=0, id="first")
    platform = PlatformConfig(num_pci_segments=3)
    async with VM(config("s", disks=(disk, first), platform=platform)) as vm:
        await vm.start()
        assert [vendor(vm, slot, 1) for slot in (0, 1)] == [0x1AF4, 0x1AF4]
        assert [vendor(vm, 0, segment) for segment in (0, 2)] == [0x8086, 0x8086]
        removal = asyncio.ensure_future(vm.remove("first"))
        assert await let_go(vm, 1) == [0]
        await removal
        task = asyncio.ensure_future(vm.add(disk))
        assert await look(vm, 1) == [2], "nobody is given it who has not asked for it"
        assert await task == "disk1"
        task = asyncio.ensure_future(vm.add(first))
        assert await look(vm, 1) == [0]
        assert await task == "first"
        with pytest.raises(UsageError, match="slot 0 has the host bridge, where no device has it from the start"):
            await vm.add(replace(disk, pci_segment=2, pci_device_id=0))


async def test_a_console_comes_goes_and_comes_again() -> None:
    async with VM(config("s")) as vm:
        await vm.start()
        with pytest.raises(ConfigError, match="behind the IOMMU"):
            await vm.add(ConsoleConfig(iommu=True), timeout=0)
        with pytest.raises(StateError, match="no console"):
            vm.console.write(b"x")
        for _ in range(2):
            assert await vm.add(ConsoleConfig(), timeout=0) == "console"
            vm.console.write(b"kept")
            await vm.remove("console", timeout=0, force=True)
            vm.console.write(b"kept too")
        assert vm.config.console.mode is ConsoleMode.OFF


async def test_a_console_that_comes_is_joined_to_its_place_until_it_goes(tmp_path: Path) -> None:
    async with VM(config("s")) as vm:
        await vm.start()
        with pytest.raises(ConfigError, match="behind the IOMMU"):
            await vm.add(ConsoleConfig(ConsoleMode.FILE, tmp_path / "none", iommu=True), timeout=0)
        with pytest.raises(StateError, match="no console"):
            vm.console.write(b"x")
        for name in ("one", "two"):
            path = tmp_path / name
            assert await vm.add(ConsoleConfig(ConsoleMode.FILE, path), timeout=0) == "console"
            assert vm.console.place == str(path)
            with pytest.raises(ConfigError, match="is there already"):
                await vm.add(ConsoleConfig(ConsoleMode.FILE, tmp_path / "three"), timeout=0)
            assert vm.console.place == str(path)
            vm.machine.parts.console_output(b"printed")
            await vm.remove("console", timeout=0, force=True)
            assert vm.console.place == ""
            assert path.read_bytes().endswith(b"printed")
    assert not (tmp_path / "three").exists()


async def test_of_two_consoles_that_come_at_once_the_first_keeps_its_place(tmp_path: Path) -> None:
    async with VM(config("s")) as vm:
        await vm.start()
        wanted = [ConsoleConfig(ConsoleMode.FILE, tmp_path / name) for name in ("one", "two")]
        came = await asyncio.gather(*(vm.add(each, timeout=0) for each in wanted), return_exceptions=True)
        assert came[0] == "console"
        assert isinstance(came[1], ConfigError)
        assert vm.console.place == str(tmp_path / "one")
        vm.console.write(b"taken")
        assert not (tmp_path / "two").exists()


async def test_what_goes_while_a_console_comes_leaves_its_place_alone(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined, go_on = asyncio.Event(), asyncio.Event()
    join = Places.join

    async def then_wait(self: Places, id_: str, console: Console, config: ConsoleConfig) -> None:
        await join(self, id_, console, config)
        joined.set()
        await go_on.wait()

    monkeypatch.setattr(Places, "join", then_wait)
    async with VM(config("s", disks=(DiskConfig(path=image),))) as vm:
        coming = asyncio.ensure_future(vm.add(ConsoleConfig(ConsoleMode.FILE, tmp_path / "one"), timeout=0))
        await joined.wait()
        await vm.remove("disk0")
        go_on.set()
        assert await coming == "console"
        assert vm.console.place == str(tmp_path / "one")


async def test_a_console_that_comes_while_the_last_ones_place_is_let_go_of_keeps_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lingers, go_on = asyncio.Event(), asyncio.Event()

    async def linger(*_: object) -> None:
        lingers.set()
        await go_on.wait()

    monkeypatch.setattr("aiovmm.console.backends.base.linger", linger)
    one, two = (ConsoleConfig(ConsoleMode.FILE, tmp_path / name) for name in ("one", "two"))
    async with VM(config("s")) as vm:
        await vm.start()
        await vm.add(one, timeout=0)
        going = asyncio.ensure_future(vm.remove("console", timeout=0, force=True))
        await lingers.wait()
        await vm.add(two, timeout=0)
        go_on.set()
        await going
        assert vm.console.place == str(tmp_path / "two")


async def test_a_console_that_the_guest_does_not_look_at_leaves_its_place(tmp_path: Path) -> None:
    path = tmp_path / "console.sock"
    async with VM(config("s")) as vm:
        await vm.start()
        with pytest.raises(HotplugTimeout):
            await vm.add(ConsoleConfig(ConsoleMode.SOCKET, path), timeout=0.01)
        assert vm.console.place == ""
        assert not path.exists()


@pytest.mark.parametrize(
    ("device", "message"),
    [
        (DiskConfig(path=Path("/nowhere/disk")), "disk"),
        (DiskConfig(path=Path("/nowhere/disk"), pci_segment=1), "no segment 1"),
        (DiskConfig(path=Path("/nowhere/disk"), id="there"), "names two devices"),
        (DiskConfig(path=Path("/nowhere/disk"), pci_device_id=1), "slot 1 of segment 0 is given to two"),
        (DiskConfig(path=Path("/nowhere/disk"), rate_limit_group="none"), "no group 'none'"),
        (FsConfig(tag="share", socket=Path("/nowhere/socket")), r"memory\.shared"),
        (RngConfig(iommu=True), "behind the IOMMU"),
        (BalloonConfig(size=64 << 20), r"balloon\.size"),
        (ConsoleConfig(ConsoleMode.TTY), "of a console that comes later is not tty"),
        (ConsoleConfig(ConsoleMode.FILE, Path("/nowhere/file")), "No such file"),
        ("path=x", "no device's configuration"),
        (DeviceConfig(path=Path("/nowhere/device")), r"looking for a PCI device .*No such device"),
        (PvpanicConfig(), r"VMConfig\(pvpanic=\)"),
        (DebugConsoleConfig(ConsoleMode.NULL), r"VMConfig\(debug_console=\)"),
    ],
)
async def test_what_cannot_be_is_refused_and_changes_nothing(image: Path, device: object, message: str) -> None:
    async with VM(config("s", disks=(DiskConfig(path=image, id="there"),))) as vm:
        await vm.start()
        before = descriptors()
        with pytest.raises((UsageError, OSError), match=message):
            await vm.add(device)  # type: ignore[arg-type]
        assert [p.id for p in vm._plugged()] == ["there"]
        assert descriptors() <= before
        await counts_on(vm)


async def test_what_is_not_there_cannot_be_removed() -> None:
    async with VM(config("s")) as vm:
        with pytest.raises(KeyError, match="no device 'disk7'"):
            await vm.remove("disk7")
        with pytest.raises(UsageError, match="not a number"):
            await vm.remove("disk7", timeout=float("nan"))


async def test_a_segment_that_is_full_says_so(image: Path) -> None:
    async with VM(config("s")) as vm:
        for number in range(31):
            await vm.add(RngConfig() if not number else DiskConfig(path=image, readonly=True))
        with pytest.raises(UsageError, match="is full"):
            await vm.add(DiskConfig(path=image, readonly=True))
        with pytest.raises(ConfigError, match="rng: is there already"):
            await vm.add(RngConfig())
        assert len(vm.disks) == 30


MEMORY = MemoryConfig(4 << 20, hotplug_size=256 << 20, hotplug_method=HotplugMethod.VIRTIO_MEM)


async def test_memory_that_a_guest_does_not_take_is_told_of_and_stays_asked_for() -> None:
    async with VM(config("s", memory=MEMORY)) as vm:
        await vm.start()
        assert [(r.gpa, r.size) for r in vm.machine.memory.regions] == [(0, 4 << 20), (4 << 30, 256 << 20)]
        with pytest.raises(
            HotplugTimeout, match=r"after 0\.05 s the guest has 0 bytes of hotplugged memory, not 67108864"
        ):
            await vm.resize(memory=68 << 20, timeout=0.05)
        assert vm.config.memory.hotplugged_size == 64 << 20
        await vm.resize(memory=4 << 20)
        assert vm.config.memory.hotplugged_size == 0
        await counts_on(vm)


async def test_who_asks_for_another_size_meanwhile_is_who_gets_it() -> None:
    async with VM(config("s", memory=MEMORY)) as vm:
        await vm.start()
        first = asyncio.ensure_future(vm.resize(memory=68 << 20, timeout=LONG))
        await until(lambda: vm.config.memory.hotplugged_size == 64 << 20)
        await vm.resize(memory=4 << 20, timeout=LONG)
        with pytest.raises(HotplugError, match=r"asked for 0 bytes of hotplugged memory meanwhile, not 67108864"):
            await first
        await vm.kill()
        sizes = [seen.detail async for seen in vm.events(from_start=True) if seen.kind is EventKind.RESIZED]
    assert sizes == [f"{4 << 20} bytes of memory"]


async def test_the_end_of_the_guest_answers_who_resizes() -> None:
    async with VM(config("s", memory=MEMORY)) as vm:
        await vm.start()
        task = asyncio.ensure_future(vm.resize(memory=68 << 20, timeout=None))
        await until(lambda: vm.config.memory.hotplugged_size > 0)
        await vm.kill("enough")
        with pytest.raises(StateError, match="has ended before"):
            await task


@pytest.mark.parametrize("size", [0, (4 << 20) + 4096, 261 << 20, "5M"])
async def test_sizes_that_memory_cannot_have(size: object) -> None:
    async with VM(config("s", memory=MEMORY)) as vm:
        with pytest.raises(UsageError, match="it can have 4194304 to 272629760 bytes"):
            await vm.resize(memory=size)  # type: ignore[arg-type]


async def test_a_vm_without_memory_to_come_says_so() -> None:
    async with VM(config("s")) as vm:
        await vm.start()
        with pytest.raises(UsageError, match="hotplug_size"):
            await vm.resize(memory=64 << 20)


async def test_persistent_memory_comes_and_goes(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("cold", "hot")]
    for file in files:
        file.write_bytes(file.name.encode().ljust(4 << 20, b"\0"))
    async with VM(config("s", pmems=(PmemConfig(file=files[0]),))) as vm:
        await vm.start()
        before = descriptors()
        window = vm.machine.pci.root.segments[0].plan.mmio64
        task = asyncio.ensure_future(vm.add(PmemConfig(file=files[1])))
        assert await look(vm) == [2]
        assert await task == "pmem1"
        place = struct.unpack("<QQ", vm.device("pmem1").read_config(0, 16))
        assert window.holds(*place)
        assert vm.machine.memory.read(place[0], 3) == b"hot"
        assert len(vm.machine.memory.regions) == 3
        for id_, slot in (("pmem1", 2), ("pmem0", 1)):
            removal = asyncio.ensure_future(vm.remove(id_))
            assert await let_go(vm) == [slot]
            await removal
        assert [r.ram for r in vm.machine.memory.regions] == [True]
        assert descriptors() < before
        with pytest.raises(GuestFault):
            vm.machine.memory.read(place[0], 3)
        again = asyncio.ensure_future(vm.add(PmemConfig(file=files[1])))
        assert await look(vm) == [1]
        await again
        place = struct.unpack("<QQ", vm.device("pmem0").read_config(0, 16))
        assert vm.machine.memory.read(place[0], 3) == b"hot"
        await counts_on(vm)


async def test_where_persistent_memory_was_nothing_else_comes_to_be(tmp_path: Path) -> None:
    """What another device still writes there goes nowhere, least of all to the file, which is mapped no more."""
    file = tmp_path / "image"
    file.write_bytes(bytes(4 << 20))
    async with VM(config("s", pmems=(PmemConfig(file=file),))) as vm:
        await vm.start()
        (region,) = (region for region in vm.machine.memory.regions if not region.ram)
        removal = asyncio.ensure_future(vm.remove("pmem0"))
        assert await let_go(vm) == [1]
        await removal
        assert str(file) not in mappings()
        ffi.memmove(ffi.cast("char *", region.host), b"too late", 8)
    assert file.read_bytes() == bytes(4 << 20)


async def test_persistent_memory_whose_slot_is_taken_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "image"
    file.write_bytes(bytes(4 << 20))
    async with VM(config("s", rng=RngConfig())) as vm:
        await vm.start()
        before = descriptors()
        with pytest.raises(UsageError, match="slot 1"):
            await vm.add(PmemConfig(file=file, pci_device_id=1))
        assert [r.ram for r in vm.machine.memory.regions] == [True]
        assert descriptors() <= before


async def test_another_slot_is_emptied_while_a_device_is_taken_by_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disks = tuple(DiskConfig(path=tmp_path / name) for name in "ab")
    for disk in disks:
        assert disk.path is not None
        disk.path.write_bytes(bytes(1 << 20))
    async with VM(config("s", disks=disks)) as vm:
        await vm.start()
        with pytest.raises(HotplugTimeout):
            await vm.remove("disk1", timeout=0.01)
        going, go_on, unplug = asyncio.Event(), asyncio.Event(), vm.machine.pci.unplug

        async def slow(address: PciAddress, iommu: object) -> None:
            if address.slot == 1:
                going.set()
                await go_on.wait()
            await unplug(address, iommu)  # type: ignore[arg-type]

        monkeypatch.setattr(vm.machine.pci, "unplug", slow)
        forced = asyncio.ensure_future(vm.remove("disk0", timeout=0.01, force=True))
        await asyncio.wait_for(going.wait(), LONG)
        await eject(vm, 0b110)
        assert (vendor(vm, 1), vendor(vm, 2)) == (0x1AF4, 0xFFFF)
        go_on.set()
        await forced
        assert not vm.disks
        await counts_on(vm)


@pytest.mark.parametrize("id_", ["custom0", "mem"])
async def test_an_id_that_a_device_of_no_configuration_has(image: Path, id_: str) -> None:
    memory = MemoryConfig(4 << 20, hotplug_size=128 << 20, hotplug_method=HotplugMethod.VIRTIO_MEM)
    async with VM(config("s", memory=memory), devices=[RngDevice.from_config(RngConfig())]) as vm:
        await vm.start()
        with pytest.raises(ConfigError, match=f"{id_!r} names two devices"):
            await vm.add(DiskConfig(path=image, id=id_), timeout=0)
        assert [plugged.id for plugged in vm._plugged()] == ["mem", "custom0"]
        await counts_on(vm)
