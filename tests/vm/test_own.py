"""What a program brings along: ports of its own, devices that misbehave, and values of the wrong type."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import pydoc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

import aiovmm.config
from aiovmm import (
    VM,
    BalloonConfig,
    ConsoleConfig,
    ConsoleMode,
    CpusConfig,
    DiskConfig,
    EventKind,
    ExitReason,
    FsConfig,
    MemoryConfig,
    NetConfig,
    PayloadConfig,
    PortDevice,
    RebootPolicy,
    RngConfig,
    Space,
    StateError,
    UsageError,
    VirtioDevice,
    VMConfig,
    VMState,
    VsockConfig,
)
from aiovmm.config import ImageType
from aiovmm.devices.virtio.balloon import BalloonDevice
from aiovmm.devices.virtio.blk import BlkDevice
from aiovmm.devices.virtio.rng import RngDevice
from aiovmm.errors import ConfigError
from aiovmm.testing import Harness
from tests.limits import HANGS
from tests.vm.guest import config, counts_on, event


class Reset(PortDevice):
    """At ports where nothing else is."""

    base, size, name = 0x710, 2, "mine"

    def __init__(self) -> None:
        self.lives = 0

    def reset(self) -> None:
        self.lives += 1


async def test_a_port_of_ones_own_lives_over_reboots() -> None:
    mine = Reset()
    async with VM(config("hr", on_reboot=RebootPolicy.RESTART), ports=[mine]) as vm:
        await vm.start()
        await event(vm, EventKind.REBOOTED, 2)
        assert mine.lives >= 3
        found = vm.machine.bus.find(Space.PIO, 0x711)
        assert found is not None
        assert found.device is mine


async def test_a_debug_exit_ends_the_guest_with_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    class DebugExit(PortDevice):
        base, size, name = 0x700, 2, "debug-exit"

        def write(self, offset: int, data: bytes) -> None:
            self.end(f"debug exit with {int.from_bytes(data, 'little')}")

    port = DebugExit()
    async with VM(config("s"), ports=[port]) as vm:
        await vm.start()
        await counts_on(vm)
        vm.machine.bus.write(Space.PIO, 0x700, b"\x03")
        status = await asyncio.wait_for(vm.wait(), HANGS)
    assert (status.reason, status.detail) == (ExitReason.SHUTDOWN, "debug exit with 3")


class Serial(PortDevice):
    base, size, name = 0x3FA, 1, "clash"


class Window(PortDevice):
    space, size, name = Space.MMIO, 16, "window"

    def __init__(self, base: int) -> None:
        self.base = base


TAKEN = {
    0x1000: "lies in the guest's memory",
    0xC000_0000: r"lies in a PCI window \(free is 0xf8000000 to 0xfec00000\)",
    0x1_0000_0000 + (1 << 30): "lies in a PCI window",
    0xE800_0000: "overlaps",
    0xFEC0_0008: "overlaps",
    0xFEE0_0000: "lies in the local APIC",
    0xFFFB_C000: "lies in KVM's own pages",
}


async def test_a_place_that_is_free() -> None:
    async with VM(config("s"), ports=[Window(0xF800_0000), Window(0xFEBF_FFF0), Window(0x2000_0000)]) as vm:
        await vm.start()
        await counts_on(vm)


@pytest.mark.parametrize(
    ("port", "words"), [(Serial(), "overlaps 'serial'"), *((Window(base), words) for base, words in TAKEN.items())]
)
async def test_a_place_that_is_taken_is_refused_by_name(port: PortDevice, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        await VM(config("s"), ports=[port]).__aenter__()


class Good(VirtioDevice):
    device_id = 4
    queue_sizes = (16,)

    async def run(self, queues: Any, features: int) -> None:
        await asyncio.Event().wait()


class Nameless(Good):
    device_id = None  # type: ignore[assignment]


class Hundred(Good):
    queue_sizes = (100,)


class Plain(Good):
    def run(self, queues: Any, features: int) -> None:  # type: ignore[override]
        return


class Many(Good):
    queue_sizes = 16  # type: ignore[assignment]


class Words(Good):
    features = "all"  # type: ignore[assignment]


class Numbered(Good):
    name = 5  # type: ignore[assignment]


class OpensAtOnce(Good):
    def open(self) -> None:  # type: ignore[override]
        return


class Away(PortDevice):
    base, space = 0x710, "pio"  # type: ignore[assignment]


class Later(PortDevice):
    base = 0x710

    async def read(self, offset: int, size: int) -> bytes:  # type: ignore[override]
        return bytes(size)


ONE = Good()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"devices": [Good]}, r"devices\[0\]: Good is a class"),
        ({"devices": [object()]}, "no VirtioDevice"),
        ({"devices": [Nameless()]}, "device_id"),
        ({"devices": [Good(), Hundred()]}, r"devices\[1\].queue_sizes: 100 is not a power of two"),
        ({"devices": [Plain()]}, "async def run"),
        ({"devices": [ONE, ONE]}, "plugged twice"),
        ({"ports": [Reset]}, "no PortDevice"),
        ({"ports": [PortDevice()]}, "has no place"),
        ({"devices": ONE}, r"devices: .* is no list"),
        ({"ports": PortDevice()}, r"ports: .* is no list"),
        ({"devices": [Many()]}, r"queue_sizes: 16 is no tuple"),
        ({"devices": [Words()]}, r"features: 'all' is not a number"),
        ({"devices": [Numbered()]}, r"name: 5 is not text"),
        ({"devices": [OpensAtOnce()]}, r"write `async def open\(self\)`"),
        ({"ports": [Away()]}, r"space: 'pio' is no Space \(Space.PIO, or Space.MMIO\)"),
        ({"ports": [Later()]}, r"write `def read"),
    ],
)
def test_devices_that_cannot_be_are_refused_when_the_vm_is_made(arguments: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        VM(config("s"), **arguments)


@pytest.mark.parametrize("arguments", [{"devices": [Good()]}, {"ports": [Reset()]}], ids=["device", "port"])
async def test_what_is_in_a_vm_goes_into_no_other_before_that_is_over(arguments: Any) -> None:
    ((thing,),) = arguments.values()
    async with VM(config("s"), **arguments) as first:
        second = VM(config("s", name="second"), **arguments)
        with pytest.raises(StateError, match=f"{thing.name} is in VM 'guest'"):
            await second.__aenter__()
        await first.start()
        await counts_on(first)
    async with VM(config("s"), **arguments) as third:
        await third.start()
        await counts_on(third)


def test_values_are_coerced_as_on_the_command_line() -> None:
    made = VMConfig(
        PayloadConfig("vmlinuz"),  # type: ignore[arg-type]
        cpus=2,  # type: ignore[arg-type]
        memory="512M",  # type: ignore[arg-type]
        serial=ConsoleConfig("pty"),  # type: ignore[arg-type]
        console="file=/tmp/x",  # type: ignore[arg-type]
        disks=["path=a.img,readonly=on", DiskConfig(path=Path("b.img"))],  # type: ignore[arg-type]
        on_reboot="restart",  # type: ignore[arg-type]
    )
    assert made.payload.kernel == Path("vmlinuz")
    assert made.cpus == CpusConfig(2)
    assert made.memory.size == MemoryConfig(size="512M").size == 512 << 20  # type: ignore[arg-type]
    assert made.serial.mode is ConsoleMode.PTY
    assert made.console == ConsoleConfig(ConsoleMode.FILE, Path("/tmp/x"))
    assert [disk.readonly for disk in made.disks] == [True, False]
    assert made.on_reboot is RebootPolicy.RESTART


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: VMConfig(PayloadConfig(Path("k")), cpus=CpusConfig), r"cpus: .*is not CpusConfig"),  # type: ignore[arg-type]
        (lambda: VMConfig(PayloadConfig(Path("k")), memory="lots"), "lots"),  # type: ignore[arg-type]
        (
            lambda: VMConfig(PayloadConfig(Path("k")), disks=DiskConfig(path=Path("a"))),  # type: ignore[arg-type]
            "disks: .*not a list of DiskConf",
        ),
        (lambda: VMConfig(PayloadConfig(Path("k")), disks=["path=a", 3.5]), r"disks\[1\]: 3.5 is not DiskConfig"),  # type: ignore[arg-type]
        (lambda: VMConfig(PayloadConfig(Path("k")), fs=[FsConfig]), r"fs\[0\]: .* \(give an object of it: FsConfig"),  # type: ignore[arg-type]
        (lambda: VMConfig(PayloadConfig(Path("k")), serial="screen"), "serial: 'screen' is not a place"),  # type: ignore[arg-type]
        (lambda: VMConfig(PayloadConfig(Path("k")), name=3), "name: 3 is not text"),  # type: ignore[arg-type]
        (lambda: VMConfig(Path("k")), "payload"),  # type: ignore[arg-type]
        (lambda: CpusConfig("two"), "cpus.boot: 'two' is not a whole number"),  # type: ignore[arg-type]
        (lambda: CpusConfig(True), "cpus.boot: True"),
        (lambda: CpusConfig(2, affinity=((0, ("1",)),)), r"cpus.affinity\[0\]\[1\]\[0\]: '1' is not a whole number"),  # type: ignore[arg-type]
        (
            lambda: CpusConfig(2, affinity=((0, (1,), 2),)),  # type: ignore[arg-type]
            r"affinity\[0\]: .* is not \(a whole number, a list of a whole",
        ),
        (lambda: CpusConfig(2, affinity=((-1, (0,)),)), "no vCPU -1"),
        (lambda: CpusConfig(2, affinity=((0, (-1,)),)), "-1 is no processor"),
        (lambda: DiskConfig(path=3), "disk.path: 3 is not a path"),  # type: ignore[arg-type]
        (lambda: NetConfig(fd=("x",)), "net.fd"),  # type: ignore[arg-type]
        (lambda: RngConfig(iommu="on"), "rng.iommu"),  # type: ignore[arg-type]
        (lambda: VM(Path("k")), "no VMConfig"),  # type: ignore[arg-type]
    ],
)
def test_values_of_the_wrong_type_are_refused_by_name(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


NEEDED: dict[str, dict[str, Any]] = {
    "PmemConfig": {"file": "/x"},
    "FsConfig": {"tag": "t", "socket": "/s"},
    "MemoryZoneConfig": {"id": "z"},
    "NumaConfig": {"guest_numa_id": 0},
    "PciSegmentConfig": {"pci_segment": 0},
    "GenericVhostUserConfig": {"device_type": 4, "socket": "/s", "queue_sizes": [64]},
    "DeviceConfig": {"path": "/x"},
    "PayloadConfig": {"kernel": "/k"},
    "RateLimitGroupConfig": {"id": "x", "bw_size": 1},
    "VMConfig": {"payload": PayloadConfig(Path("/k"))},
}
FIELDS = [
    (made, field.name)
    for made in (getattr(aiovmm.config, name) for name in aiovmm.config.__all__)
    if dataclasses.is_dataclass(made)
    for field in dataclasses.fields(made)
]


@pytest.mark.parametrize(("made", "field"), FIELDS, ids=lambda v: getattr(v, "__name__", v))
@pytest.mark.parametrize("value", [object(), (object(),), ((0, "x"),), ((0, (1.5,)),)], ids=lambda v: type(v).__name__)
def test_no_field_of_any_configuration_takes_what_it_cannot_use(made: Any, field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        made(**(NEEDED.get(made.__name__, {}) | {field: value}))


async def test_devices_by_id_and_kind(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(1 << 20))
    async with VM(config("s", disks=(DiskConfig(path=image),), rng=RngConfig())) as vm:
        (disk,) = vm.disks
        assert vm.device("disk0", BlkDevice) is disk
        assert vm.nets == ()
        with pytest.raises(KeyError, match="no device 'disk1'; there are: disk0, rng"):
            vm.device("disk1")
        with pytest.raises(UsageError, match="RngDevice, no BlkDevice"):
            vm.device("rng", BlkDevice)
        assert isinstance(vm.device("rng", RngDevice), RngDevice)
    uses: list[Callable[[], object]] = [
        lambda: vm.device("rng"),
        lambda: vm.disks,
        lambda: vm.vsock,
        lambda: vm.machine,
    ]
    for use in uses:
        with pytest.raises(StateError, match=r"has ended \(killed: its program closed it\): it is used inside"):
            use()
    with pytest.raises(StateError, match="is not there: it is used inside"):
        VM(config("s")).disks  # noqa: B018


async def test_a_vm_without_devices_says_so() -> None:
    async with VM(config("s")) as vm:
        with pytest.raises(KeyError, match="no device 'disk0'; there are none"):
            vm.device("disk0")
        with pytest.raises(StateError, match=r"no vsock device: say vsock=VsockConfig\(\)"):
            vm.vsock  # noqa: B018
        with pytest.raises(StateError, match=r"has not been started: start\(\) it"):
            await vm.pause()


def test_help_shows_attributes_and_no_internals() -> None:
    text = pydoc.plain(pydoc.render_doc(VM))
    for name in ("serial", "console", "config", "name", "state", "status", "disks", "nets"):
        assert f" |  {name}\n" in text, name
    for name in ("guest_ended", "device_failed", "create_task"):
        assert name not in text


async def test_a_run_that_returns_breaks_the_device() -> None:
    class Returns(Good):
        async def run(self, queues: Any, features: int) -> None:
            return

    async with Harness(Returns()) as h:
        assert "run() returned" in str(await h.broken())


async def test_who_blocks_the_loop_is_named() -> None:
    async with VM(config("x")) as vm:

        def slow(offset: int, size: int) -> bytes:
            deadline = time.monotonic() + 2
            while not told and time.monotonic() < deadline:
                time.sleep(0.01)
                told.extend(r for r in seen if "pm timer" in r)
            return bytes(size)

        told: list[str] = []
        seen: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("aiovmm").addHandler(handler)
        try:
            timer = next(r for r in vm.machine.bus.ranges() if r.name == "pm timer")
            timer.device.read = slow  # type: ignore[method-assign]
            await vm.start()
            await event(vm, EventKind.DEVICE_SLOW)
        finally:
            logging.getLogger("aiovmm").removeHandler(handler)
        assert told, "while the loop is still blocked"
        assert told[0].startswith("guest: pm timer: keeps the event loop for over 0.5 s")
        assert "in slow" in told[0]
        assert vm.state is VMState.RUNNING


UNFIT = [4096.0, "4M", None, True, b"x", [], float("nan"), 1 << 70]
"""Of which none is a size, a port or a number of anything."""


@pytest.mark.parametrize("value", UNFIT, ids=repr)
async def test_what_a_running_guest_is_told_is_looked_at_first(value: Any, tmp_path: Path) -> None:
    """What it would read from a register later, or what would fail when it next prints."""
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    disk = DiskConfig(path=image, image_type=ImageType.RAW)
    devices: dict[str, Any] = {"disks": (disk,), "vsock": VsockConfig(), "balloon": BalloonConfig(size=0)}
    async with VM(config("s", memory=MemoryConfig(16 << 20), console=ConsoleConfig(), **devices)) as vm:
        await vm.start()
        balloon, blk = vm.device("balloon", BalloonDevice), vm.device("disk0", BlkDevice)

        def limit() -> None:
            blk.rate_limit = value

        calls: dict[str, Callable[[], Any]] = {
            "balloon": lambda: balloon.resize(value, 0.1),
            "disk": lambda: blk.resize(value),
            "columns": lambda: vm.console.resize(value, 1),
            "rows": lambda: vm.console.resize(1, value),
            "read": lambda: vm.serial.readexactly(value),
            "connect": lambda: vm.vsock.connect(value, timeout=0.1),
            "listen": lambda: vm.vsock.listen(value),
        }
        if not isinstance(value, str):
            calls |= {"device": lambda: vm.device(value), "remove": lambda: vm.remove(value)}
        if value is not None:
            calls |= {"copy": lambda: vm.serial.copy_to(value), "limit": limit}
            calls["time"] = lambda: balloon.resize(0, cast("float", "soon"))
        for name, call in calls.items():
            assert isinstance(await _refused(call), UsageError), name
        assert (balloon.target, blk.capacity) == (0, 1 << 20)
        vm.serial.feed(b"x")
        await counts_on(vm)


async def _refused(call: Callable[[], Any]) -> Exception | None:
    try:
        result = call()
        if result is not None:
            await result
    except Exception as exc:
        return exc
    return None
