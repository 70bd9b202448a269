"""Guests are saved, and go on where they stood."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aiovmm import (
    VM,
    ConfigError,
    ConsoleConfig,
    DiskConfig,
    EventKind,
    ExitReason,
    HostError,
    HotplugTimeout,
    MemoryConfig,
    NetConfig,
    PortDevice,
    RebootPolicy,
    RngConfig,
    SnapshotError,
    StateError,
    VirtioDevice,
    VMState,
    VsockConfig,
)
from aiovmm.boot.x86_64 import layout
from aiovmm.kvm import Kvm
from aiovmm.kvm.x86_64.vcpuimage import VcpuSizes, read_vcpu
from aiovmm.kvm.x86_64.vcpustate import VcpuState
from aiovmm.machine.architecture import board_of_host
from aiovmm.snapshot.directory import STATE, Written
from aiovmm.snapshot.document import decode, encode
from aiovmm.snapshot.restoring import open_source
from tests.limits import HANGS
from tests.vm.guest import config, counter, counts_on, event, until
from tests.vm.remains import Remains

pytestmark = pytest.mark.usefixtures("kvm_there")


def full(tmp_path: Path) -> dict[str, Any]:
    """A device of each kind that is everywhere."""
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    return {
        "console": ConsoleConfig(),
        "rng": RngConfig(),
        "vsock": VsockConfig(),
        "disks": (DiskConfig(path=tmp_path / "disk", readonly=True),),
        "nets": (NetConfig(passt=True),) if Path("/usr/bin/passt").exists() else (),
    }


@pytest.mark.parametrize("cpus", [1, 3])
async def test_a_guest_that_runs_is_saved_and_goes_on_twice(tmp_path: Path, cpus: int) -> None:
    async with VM(config("s" if cpus == 1 else "a3s", cpus, **full(tmp_path))) as vm:
        await vm.start()
        await counts_on(vm)
        snapshot = await vm.snapshot(tmp_path / "s")
        assert snapshot.pages > 5
        seen = counter(vm)
        await counts_on(vm)
    for _ in range(2):
        async with VM.restore(tmp_path / "s", name="again", verify=True) as again:
            assert (again.state, again.name) == (VMState.PAUSED, "again")
            assert 0 < counter(again) <= seen
            stood = counter(again)
            await asyncio.sleep(0.01)
            assert counter(again) == stood
            await again.resume()
            await counts_on(again)
        assert [e.kind async for e in again.events(from_start=True)] == [
            EventKind.RESTORED,
            EventKind.RESUMED,
            EventKind.STOPPED,
        ]


async def test_every_register_is_as_it_was(tmp_path: Path) -> None:
    async with VM(config("s", 2)) as vm:
        await vm.start()
        await counts_on(vm)
        await vm.pause()
        await vm.snapshot(tmp_path / "s")
        await vm.snapshot(tmp_path / "s")
        before = registers(vm)
    async with VM.restore(tmp_path / "s") as again:
        assert registers(again) == before


def registers(vm: VM) -> list[object]:
    """All that stands still; how the timer of a local APIC counts, and the time-stamp counter, go on."""
    machine = vm.machine
    with Kvm.open() as kvm:
        sizes = VcpuSizes.of(kvm.fd, machine.kvm_vm.fd)
    found: list[object] = []
    for vcpu in machine.vcpus:
        state = read_vcpu(vcpu, bytes(8), sizes)
        state["lapic"] = state["lapic"][:0x390]
        state["msrs"] = {index: value for index, value in state["msrs"] if index not in (0x10, 0x3A, 0x12, 0x4B564D01)}
        state["xsave"] = state["xsave"][:512]  # after that it says which of it is as after a reset
        found.append(state)
    return found


@pytest.mark.skipif(not board_of_host().has_ports, reason="an I/O APIC's")
@pytest.mark.parametrize("held", [True, False])
async def test_an_interrupt_whose_end_kvm_had_not_told_of_comes_again(tmp_path: Path, held: bool) -> None:
    """A pin is asserted, and was delivered. Either a local APIC has that still, or the guest has ended it just now."""
    pin, vector, level, remote_irr = 20, 0x59, 1 << 15, 1 << 14
    async with VM(config("s")) as vm:
        await vm.start()
        await counts_on(vm)
        await vm.pause()
        board: Any = vm.machine.board
        board.legacy.ioapic._registers.entries[pin] = vector | level | remote_irr
        board.legacy.ioapic._registers.levels |= 1 << pin
        state = VcpuState(vm.machine.vcpus[0])
        page = bytearray(state.get_state("lapic"))
        page[0xF0:0xF2] = b"\xff\x01"  # enabled
        page[0x200 + vector // 32 * 16 + vector % 32 // 8] |= held << vector % 8
        state.set_state("lapic", bytes(page))
        await vm.snapshot(tmp_path / "s")
    async with VM.restore(tmp_path / "s") as again:
        board = again.machine.board
        page = bytearray(VcpuState(again.machine.vcpus[0]).get_state("lapic"))
        assert page[0x200 + vector // 32 * 16 + vector % 32 // 8] >> vector % 8 & 1, (
            "it is requested, once more or still"
        )
        assert board.legacy.ioapic._registers.entries[pin] & remote_irr


async def test_time_goes_on(tmp_path: Path) -> None:
    async with VM(config("s")) as vm:
        await vm.start()
        await counts_on(vm)
        await vm.snapshot(tmp_path / "s")
        await vm.pause()
        before = VcpuState(vm.machine.vcpus[0]).get_msrs([0x10])[0x10]
        khz = VcpuState(vm.machine.vcpus[0]).get_tsc_khz()
    await asyncio.sleep(0.2)
    async with VM.restore(tmp_path / "s") as again:
        now = VcpuState(again.machine.vcpus[0]).get_msrs([0x10])[0x10]
        if khz:
            assert 0.15 < (now - before) / khz / 1000 < 30, "what has passed meanwhile has passed for the guest, too"


async def test_a_paused_guest_stays_paused_and_one_that_waits_is_woken(tmp_path: Path) -> None:
    async with VM(config("heho")) as vm:
        await vm.start()
        await vm.serial.expect(rb"hello")
        await vm.pause()
        await vm.snapshot(tmp_path / "s")
        assert vm.state is VMState.PAUSED
        await vm.resume()
    async with VM.restore(tmp_path / "s") as again:
        await again.resume()
        await again.serial.send(b"abq")
        await again.serial.expect(rb"abq.*hello")
        assert (await asyncio.wait_for(again.wait(), HANGS)).reason is ExitReason.SHUTDOWN


async def test_a_restored_guest_that_resets_itself_boots_its_kernel(tmp_path: Path) -> None:
    async with VM(config("her", on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        await vm.serial.expect(rb"hello")
        await vm.snapshot(tmp_path / "s")
    async with VM.restore(tmp_path / "s") as again:
        await again.resume()
        await again.serial.send(b"q")
        await event(again, EventKind.REBOOTED)
        await again.serial.expect(rb"hello")


async def test_each_time_it_is_another_generation(tmp_path: Path) -> None:
    async with VM(config("s")) as vm:
        await vm.start()
        await counts_on(vm)
        await vm.snapshot(tmp_path / "s")
        seen = {vm.machine.memory.read(layout.VM_GENERATION, 16)}
    for _ in range(2):
        async with VM.restore(tmp_path / "s") as again:
            seen.add(again.machine.memory.read(layout.VM_GENERATION, 16))
    assert len(seen) == 3
    assert bytes(16) not in seen


async def test_nothing_is_left(tmp_path: Path) -> None:
    async with VM(config("s", **full(tmp_path))) as vm:
        await vm.start()
        await counts_on(vm)
        await vm.snapshot(tmp_path / "s")
    async with VM.restore(tmp_path / "s") as again:
        await again.resume()
    before = Remains.now()
    for _ in range(3):
        async with VM.restore(tmp_path / "s", prefault=True) as again:
            await again.resume()
            await counts_on(again)
            await again.snapshot(tmp_path / "t")
    await before.check()


async def test_the_last_of_a_snapshot_has_it_alone(tmp_path: Path) -> None:
    """Once its guest has another memory, or is gone, nothing of the snapshot is open."""
    async with VM(config("her", on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        await vm.serial.expect(rb"hello")
        await vm.snapshot(tmp_path / "s")
    source = open_source(tmp_path / "s")
    async with source.vm(VM, source.config, last=True) as again:
        await again.resume()
        (memory,) = (tmp_path / "s").glob("memory-*")
        assert is_open(memory)
        await again.serial.send(b"q")
        await event(again, EventKind.REBOOTED)
        await until(lambda: not is_open(memory))


def is_open(path: Path) -> bool:
    """In this process."""
    return any(fd.resolve() == path for fd in Path("/proc/self/fd").iterdir())


class Odd(VirtioDevice):
    device_id = 42
    name = "odd"

    async def run(self, queues: object, features: int) -> None:
        await asyncio.Event().wait()


class Register(PortDevice):
    """One byte."""

    base, name = 0x700, "register"
    value = 7

    def read(self, offset: int, size: int) -> bytes:
        return bytes([self.value])

    def write(self, offset: int, data: bytes) -> None:
        self.value = data[0]


class Saved(Register):
    async def save(self) -> dict[str, int]:
        return {"value": self.value}

    def load(self, state: dict[str, int]) -> None:
        self.value = state["value"]


async def test_what_cannot_be_saved_is_refused_by_name_and_the_guest_goes_on(tmp_path: Path) -> None:
    async with VM(config("s"), devices=[Odd()]) as vm:
        await vm.start()
        await counts_on(vm)
        for _ in range(2):
            with pytest.raises(SnapshotError, match=r"odd.*save\(\) and load\(\)"):
                await vm.snapshot(tmp_path / "s")
            await counts_on(vm)
        with pytest.raises(SnapshotError, match="odd"):
            await vm.freeze()
        await counts_on(vm)
        assert not (tmp_path / "s").exists()
    async with VM(config("s"), ports=[Register()]) as vm:
        await vm.start()
        with pytest.raises(SnapshotError, match=r"'register' cannot be saved.*def save"):
            await vm.snapshot(tmp_path / "s")


async def test_a_device_of_the_program_with_state(tmp_path: Path) -> None:
    device = Saved()
    async with VM(config("s"), ports=[device]) as vm:
        await vm.start()
        device.value = 99
        await vm.snapshot(tmp_path / "s")
    again = Saved()
    async with VM.restore(tmp_path / "s", ports=[again]):
        assert again.value == 99
    with pytest.raises(SnapshotError, match="ports"):
        async with VM.restore(tmp_path / "s"):
            pass


class Keeps(Register):
    """Its state as it is, of which others could have a part."""

    def __init__(self, state: dict[str, object]) -> None:
        super().__init__()
        self.state = state

    def save(self) -> dict[str, object]:
        return self.state

    def load(self, state: dict[str, object]) -> None:
        self.state = {name: state.pop(name) for name in list(state)}


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"a": [1, {"b": 1.5}]}, r"register\.a\[1\]\.b is float, which no snapshot can have"),
        ({"a": (1,)}, r"register\.a is tuple"),
        ({7: 1}, "a field 7"),
        ({"$hex": ""}, r"a field '\$hex'"),
        ({"sha256": ""}, "a field 'sha256'"),
    ],
)
async def test_state_that_is_not_plain_is_refused_by_the_name_of_the_device(
    tmp_path: Path, state: dict[str, object], said: str
) -> None:
    async with VM(config("s"), ports=[Keeps(state)]) as vm:
        await vm.start()
        with pytest.raises(SnapshotError, match=said):
            await vm.snapshot(tmp_path / "s")
        await counts_on(vm)


async def test_state_is_as_it_was_when_the_guest_stood_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device, commit = Keeps({"items": ["old"]}), Written.commit

    def late(*arguments: object) -> None:
        device.state["items"].append("new")  # type: ignore[attr-defined]
        commit(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Written, "commit", late)
    async with VM(config("s"), ports=[device]) as vm:
        await vm.start()
        await vm.snapshot(tmp_path / "s")
        template = await vm.freeze()
    for number in range(2):
        again, child = Keeps({}), Keeps({})
        async with VM.restore(tmp_path / "s", ports=[again]), template.fork(ports=[child]):
            assert again.state == {"items": ["old"]}
            assert child.state == {"items": ["old", "new"]}, number
            child.state["items"].append("newer")  # type: ignore[attr-defined]
    template.close()


async def test_when_there_is_none_to_be_had(tmp_path: Path) -> None:
    vm = VM(config("s"))
    with pytest.raises(StateError, match="created"):
        await vm.snapshot(tmp_path)
    async with vm:
        with pytest.raises(StateError, match="created"):
            await vm.snapshot(tmp_path)
        await vm.start()
        with pytest.raises(HostError, match="No such file"):
            await vm.snapshot(tmp_path / "none" / "there")
        await counts_on(vm)
        with pytest.raises(ConfigError, match="no path"):
            await vm.snapshot(7)  # type: ignore[arg-type]
        await vm.kill()
        with pytest.raises(StateError, match="stopped"):
            await vm.snapshot(tmp_path)
    with pytest.raises(HostError, match="No such file"):
        async with VM.restore(tmp_path / "none"):
            pass
    with pytest.raises(SnapshotError, match=r"no state\.json"):
        async with VM.restore(tmp_path):
            pass


async def test_there_is_none_of_a_guest_that_has_just_ended(tmp_path: Path) -> None:
    """Where it stands it would not know that it was to be reset; the one before stays."""
    async with VM(config("s", on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        await vm.snapshot(tmp_path / "s")
        before = os.listdir(tmp_path / "s")
        for count, work in enumerate((vm.snapshot(tmp_path / "s"), vm.freeze()), 1):
            vm.machine.board.ended(ExitReason.REBOOT, "by the guest")
            with pytest.raises(StateError, match="has just ended, or resets itself"):
                await work
            await event(vm, EventKind.REBOOTED, count)
            await counts_on(vm)
        assert os.listdir(tmp_path / "s") == before
        await vm.snapshot(tmp_path / "s")


async def test_overrides_are_for_the_same_machine(tmp_path: Path) -> None:
    async with VM(config("s")) as vm:
        await vm.start()
        await vm.snapshot(tmp_path / "s")
    with pytest.raises(ConfigError, match=r"memory\.size: cannot become"):
        async with VM.restore(tmp_path / "s", overrides={"memory": MemoryConfig(8 << 20)}):
            pass
    for more in (
        MemoryConfig(4 << 20, hotplug_size=128 << 20),
        MemoryConfig(4 << 20, hotplug_size=128 << 20, hotplugged_size=128 << 20),
    ):
        with pytest.raises(ConfigError, match=r"memory\.hotplug_size: cannot become"):
            async with VM.restore(tmp_path / "s", overrides={"memory": more}):
                pass
    with pytest.raises(ConfigError, match="no such field"):
        async with VM.restore(tmp_path / "s", overrides={"cores": 2}):
            pass


async def test_memory_that_is_not_what_was_saved(tmp_path: Path) -> None:
    async with VM(config("s")) as vm:
        await vm.start()
        await vm.snapshot(tmp_path / "s")
    (memory,) = (tmp_path / "s").glob("memory-*")
    with memory.open("r+b") as file:
        file.seek(0x7000)
        file.write(b"\xff")
    with pytest.raises(SnapshotError, match="not what was saved"):
        async with VM.restore(tmp_path / "s", verify=True):
            pass


async def test_memory_that_is_of_another_size_than_the_machine(tmp_path: Path) -> None:
    async with VM(config("s")) as vm:
        await vm.start()
        await vm.snapshot(tmp_path / "s")
    path = tmp_path / "s" / STATE
    state = decode(path.read_bytes())
    state["config"]["memory"]["size"] *= 2
    path.write_bytes(encode(state))
    with pytest.raises(SnapshotError, match="has 4194304 bytes of memory, and its config 8388608"):
        async with VM.restore(tmp_path / "s"):
            pass


@asynccontextmanager
async def cancelled_after(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        pass


@pytest.mark.parametrize("ms", [0, 1, 2, 4, 8])
async def test_who_gives_up_leaves_the_guest_going_on(tmp_path: Path, ms: int) -> None:
    async with VM(config("s", **full(tmp_path))) as vm:
        await vm.start()
        await counts_on(vm)
        await vm.snapshot(tmp_path / "s")
        async with cancelled_after(ms / 1000):
            await vm.snapshot(tmp_path / "s")
        await counts_on(vm)
        await vm.snapshot(tmp_path / "s")
        assert len(os.listdir(tmp_path / "s")) == 2


async def test_disks_are_flushed_before_a_snapshot_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or after a failure of the host's power the guest would remember what its disk has lost."""
    from aiovmm.devices.virtio.blk import BlkDevice

    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    flushed: list[bool] = []

    async def sync(device: BlkDevice) -> None:
        flushed.append((tmp_path / "s" / "state.json").exists())
        if len(flushed) > 1:
            raise HostError("flushing the disk image", 5)

    monkeypatch.setattr(BlkDevice, "sync", sync)
    async with VM(config("s", disks=(DiskConfig(path=tmp_path / "disk"),))) as vm:
        await vm.start()
        await counts_on(vm)
        await vm.snapshot(tmp_path / "s")
        assert flushed == [False], "before it is there"
        with pytest.raises(HostError, match="flushing"):
            await vm.snapshot(tmp_path / "t")
        assert not (tmp_path / "t" / "state.json").exists()
        await counts_on(vm)


async def test_a_disk_that_has_lost_its_name_is_refused(tmp_path: Path) -> None:
    """Nobody could be given it."""
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    async with VM(config("s", disks=(DiskConfig(path=tmp_path / "disk"),))) as vm:
        (tmp_path / "disk").unlink()
        await vm.start()
        with pytest.raises(SnapshotError, match="disk0 cannot be in a snapshot: its file has no name"):
            await vm.snapshot(tmp_path / "s")
        await counts_on(vm)
        template = await vm.freeze()
    async with template, template.fork() as child:
        await child.resume()
        await counts_on(child)


async def test_a_disk_may_be_ejected_while_others_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aiovmm.devices.virtio.blk import BlkDevice
    from aiovmm.devices.virtio.blk.image import DiskImage
    from tests.vm import hotplug_guest as slots

    disks = tuple(DiskConfig(path=tmp_path / name) for name in "ab")
    for name in "ab":
        (tmp_path / name).write_bytes(bytes(1 << 20))
    flushed: list[str] = []
    flushing, go_on, sync = asyncio.Event(), asyncio.Event(), BlkDevice.sync

    async def slow(device: BlkDevice) -> None:
        if device.name == "disk0":
            flushing.set()
            await go_on.wait()
        await sync(device)

    def flush(image: DiskImage) -> int:
        flushed.append(image.path.name)
        return 0

    monkeypatch.setattr(BlkDevice, "sync", slow)
    monkeypatch.setattr(DiskImage, "flush", flush)
    async with VM(config("s", disks=disks)) as vm:
        await vm.start()
        with pytest.raises(HotplugTimeout):
            await vm.remove("disk1", timeout=0.01)
        snapshot = asyncio.ensure_future(vm.snapshot(tmp_path / "s"))
        await asyncio.wait_for(flushing.wait(), 60)
        await slots.eject(vm, 1 << vm.machine.devices.address("disk1").slot)
        await event(vm, EventKind.DEVICE_REMOVED)
        go_on.set()
        await snapshot
        assert sorted(flushed) == ["a", "b"]


async def test_what_was_typed_and_not_taken_yet_is_there(tmp_path: Path) -> None:
    """Behind it comes what is typed where the guest goes on."""
    async with VM(config("s")) as vm:
        await vm.start()
        await counts_on(vm)
        vm.serial.write(b"typed" * 100)
        waiting = vm.serial.input_waiting
        assert 400 < waiting <= 500
        await vm.snapshot(tmp_path / "s")
        assert vm.serial.input_waiting == waiting
    async with VM.restore(tmp_path / "s") as vm:
        assert vm.serial.input_waiting == waiting
        vm.serial.write(b"more")
        assert vm.serial._input.waiting == (b"typed" * 100)[-waiting:] + b"more"
