"""Frozen guests, their forks, and forks of these."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import shutil
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aiovmm import (
    VM,
    ConfigError,
    ConsoleConfig,
    ConsoleMode,
    DiskConfig,
    ExitReason,
    HostError,
    LimitsConfig,
    MemoryConfig,
    NetConfig,
    RateLimit,
    RateLimitGroupConfig,
    RngConfig,
    SnapshotError,
    StateError,
    UsageError,
    VMState,
    VsockConfig,
)
from aiovmm.boot.x86_64 import layout
from aiovmm.devices.virtio.blk import BlkDevice
from aiovmm.devices.virtio.blk.image import DiskImage
from aiovmm.devices.virtio.net import NetDevice
from aiovmm.devices.virtio.net.passt import PasstBackend
from aiovmm.kvm import Vcpu
from aiovmm.snapshot.disks import DiskBases
from aiovmm.snapshot.present import config_of
from aiovmm.snapshot.template import Template
from tests.host_threads import of_vcpus
from tests.limits import HANGS
from tests.open_files import descriptors
from tests.snapshot.test_received import whoever_closes
from tests.vm.guest import config, counter, counts_on, until
from tests.vm.remains import Remains
from tests.vm.test_remains import cancel_everywhere

pytestmark = pytest.mark.usefixtures("kvm_there")


async def frozen(**changes: Any) -> Template:
    async with VM(config("s", **changes)) as vm:
        await vm.start()
        await counts_on(vm)
        template = await vm.freeze()
        assert vm.status is not None
        assert (vm.state, vm.status.reason) == (VMState.STOPPED, ExitReason.KILLED)
        assert "frozen" in vm.status.detail
    return template


def bases() -> int:
    """How many of them are open."""
    gc.collect()
    names = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)]
    return sum("aiovmm-base" in name for name in names)


def _is_open(fd: str) -> bool:
    try:
        os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return False
    return True


@pytest.mark.parametrize("memory", [MemoryConfig(4 << 20), MemoryConfig(4 << 20, shared=True), MemoryConfig(64 << 20)])
async def test_forks_go_on_each_for_itself(memory: MemoryConfig) -> None:
    template = await frozen(memory=memory)
    async with template, AsyncExitStack() as stack:
        children = [await stack.enter_async_context(template.fork()) for _ in range(4)]
        assert [child.name for child in children] == [f"guest-{i}" for i in range(1, 5)]
        assert len({counter(child) for child in children}) == 1
        assert template.forks == 4
        first, *others = children
        stood = counter(first)
        await first.resume()
        await counts_on(first, 1000)
        assert {counter(child) for child in others} == {stood}
        for child in others:
            await child.resume()
        await asyncio.gather(*(counts_on(child) for child in children))
        generations = {child.machine.memory.read(layout.VM_GENERATION, 16) for child in children}
        assert len(generations) == 4
    assert template.forks == 0


async def test_what_a_fork_has_of_its_own_is_told() -> None:
    async with await frozen(memory=MemoryConfig(64 << 20)) as template, template.fork() as child:
        before = await child.memory.own()
        assert 0 < before <= 64 << 10, "where it is told that it is another"
        child.machine.memory.read(32 << 20, 1 << 20)
        child.machine.memory.write(16 << 20, b"x" * (1 << 20))
        assert await child.memory.own() == before + (1 << 20)
        assert await child.memory.resident() >= before + (1 << 20)


async def test_a_child_of_a_child_outlives_both() -> None:
    template = await frozen()
    async with template.fork("b") as child:
        await child.resume()
        await counts_on(child, 100)
        stood = counter(child)
        second = await child.freeze()
        assert second.name == "b"
        template.close()
    async with second.fork() as grandchild:
        assert counter(grandchild) >= stood
        second.close()
        with pytest.raises(StateError, match="'b' is closed"):
            async with second.fork():
                pass
        await grandchild.resume()
        await counts_on(grandchild)
        assert bases() > 0
    assert bases() == 0


async def test_a_template_that_is_forgotten_is_closed() -> None:
    template = await frozen()
    async with template.fork() as child:
        del template
        await child.resume()
        await counts_on(child)
    assert bases() == 0


async def test_each_has_a_disk_of_its_own(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(b"base" * 1024)
    template = await frozen(disks=(DiskConfig(path=image),))
    async with template, template.fork() as one, template.fork() as other:
        disks = [child.device("disk0", BlkDevice) for child in (one, other)]
        paths = [disk._image for disk in disks]
        assert paths[0] is not paths[1]
        for number, disk in enumerate(disks):
            assert disk._image is not None
            os.pwrite(disk._image.fd, b"mine%d" % number, 0)
        second = await one.freeze()
        async with second, second.fork() as grandchild:
            assert grandchild.device("disk0", BlkDevice).capacity == 4096
    assert image.read_bytes() == b"base" * 1024
    async with VM(config("s", disks=(DiskConfig(path=image),))):
        pass  # nobody has it locked any more


async def test_what_two_guests_cannot_both_have(tmp_path: Path) -> None:
    places: dict[str, Any] = {
        "serial": ConsoleConfig(ConsoleMode.SOCKET, tmp_path / "serial"),
        "console": ConsoleConfig(ConsoleMode.FILE, tmp_path / "console"),
        "vsock": VsockConfig(socket=tmp_path / "vsock"),
    }
    async with await frozen(**places) as template, template.fork(vsock_cid=77) as one, template.fork() as other:
        assert one.config.vsock == VsockConfig(cid=77)
        assert other.config.vsock == VsockConfig()
        assert one.config.serial.mode is one.config.console.mode is ConsoleMode.NULL
        own = replace(places["vsock"], socket=tmp_path / "mine")
        async with template.fork(overrides={"vsock": own}):
            assert (tmp_path / "mine").exists()
    with pytest.raises(ConfigError, match="no vsock"):
        async with await frozen() as template, template.fork(vsock_cid=7):
            pass
    with pytest.raises(ConfigError, match="neither 'overlay'"):
        async with await frozen() as template, template.fork(disks="copy"):  # type: ignore[arg-type]
            pass
    with pytest.raises(ConfigError, match=r"nets.*cannot become"):
        async with await frozen() as template, template.fork(nets=[NetConfig()]):
            pass


async def test_a_fork_that_has_not_gone_on_is_given_the_time_to_heed_that_its_connections_are_gone() -> None:
    async with await frozen(vsock=VsockConfig()) as template, template.fork() as child:
        runs = child._power.plugged[0].device._runs  # type: ignore[attr-defined]
        assert not runs()
        await child.resume()
        assert runs()
        await child.pause()
        assert not runs()


async def test_arguments_that_are_none_leave_the_template_and_the_snapshot_as_they_were(tmp_path: Path) -> None:
    wrong: list[dict[str, Any]] = [
        {"overrides": 5},
        {"overrides": []},
        {"overrides": {"nope": 1}},
        {"name": 5},
        {"name": ""},
    ]
    forks = [*wrong, {"disks": None}, {"disks": 5}, {"nets": 5}, {"nets": "tap="}, {"devices": 5}, {"vsock_cid": "7"}]
    async with VM(config("s")) as vm:
        await vm.start()
        await vm.snapshot(tmp_path / "snapshot")
        for given in wrong:
            with pytest.raises(UsageError):
                async with VM.restore(tmp_path / "snapshot", **given):
                    pass
        template = await vm.freeze()
    async with template:
        for given in forks:
            with pytest.raises(UsageError):
                async with template.fork(**given):
                    pass
        assert template.forks == 0
        async with template.fork("after"), VM.restore(tmp_path / "snapshot", name="as well"):
            pass


async def test_a_guest_keeps_the_address_that_was_made_up_for_it(tmp_path: Path) -> None:
    """Its driver has read it once for all: what goes on has no other, unless it is said to have."""
    passt = NetConfig(passt=True)
    given = NetConfig(passt=True, mac="2e:00:00:00:00:01")
    async with VM(config("s", nets=(passt, given))) as vm:
        await vm.start()
        first, second = (net.mac for net in vm.nets)
        await vm.snapshot(tmp_path / "snapshot")
        template = await vm.freeze()
    assert second == bytes.fromhex("2e0000000001")

    async def has(*macs: bytes, **fork: Any) -> None:
        async with template.fork(**fork) as child:
            assert [net.mac for net in child.nets] == list(macs)

    async with template:
        await has(first, second)
        await has(first, second, nets=[passt, passt])
        await has(first, bytes(5) + b"\2", nets=[passt, NetConfig(passt=True, mac="00:00:00:00:00:02")])
        async with template.fork() as child:
            grandchild = await child.freeze()
        async with grandchild, grandchild.fork() as last:
            assert [net.mac for net in last.nets] == [first, second]
    async with VM.restore(tmp_path / "snapshot", overrides={"nets": (passt, passt)}) as vm:
        assert [net.mac for net in vm.nets] == [first, second]


@pytest.mark.parametrize("how", ["restored", "forked"])
async def test_limits_are_those_that_the_guest_had_when_it_was_saved(how: str, tmp_path: Path) -> None:
    """Not those that it was made with: whoever has slowed it down has slowed down what goes on from it."""
    for name in ("own", "first", "second", "loose"):
        (tmp_path / name).write_bytes(bytes(1 << 20))
    groups = (RateLimitGroupConfig(id="g", bw_size=1 << 20), RateLimitGroupConfig(id="free", ops_size=5))
    disks = tuple(
        DiskConfig(path=tmp_path / name, rate_limit_group=group, ops_size=0 if group else 7)
        for name, group in (("own", None), ("first", "g"), ("second", "g"), ("loose", "free"))
    )
    nets = (NetConfig(passt=True, bw_size=1 << 30),) if shutil.which("passt") else ()
    limits = LimitsConfig(exits=50_000, lifetime=HANGS)
    async with VM(config("s", disks=disks, nets=nets, rate_limit_groups=groups, limits=limits)) as vm:
        assert config_of(vm).with_changes({"nets": nets}) == vm.config
        await vm.start()
        await counts_on(vm)
        vm.set_limits(exits=40_000, idle=HANGS)
        slow, slower = RateLimit(bw_size=3 << 20, bw_refill_time=100), RateLimit(ops_size=9, ops_one_time_burst=4)
        vm.disks[0].rate_limit, vm.disks[1].rate_limit = None, slow
        vm.disks[3].rate_limit = None
        for net in vm.nets:
            net.rate_limit = slower
        async with going_on(vm, how, tmp_path) as again:
            assert again.limits == LimitsConfig(exits=40_000, lifetime=HANGS, idle=HANGS)
            await again.resume()
            assert again.machine.parts.exits_limit == 40_000
            assert again.disks[0].rate_limit is None
            for disk in again.disks[1:3]:
                assert disk.rate_limit is not None
                assert (disk.rate_limit.bw_size, disk.rate_limit.bw_refill_time) == (3 << 20, 100)
            assert again.disks[3].rate_limit is not None  # of the group, which lets through what there is
            assert (again.disks[3].rate_limit.ops_size, again.disks[3].rate_limit.bw_size) == (0, 1 << 60)
            assert [net.rate_limit for net in again.nets] == [slower] * len(nets)
            await counts_on(again)


@asynccontextmanager
async def going_on(vm: VM, how: str, tmp_path: Path) -> AsyncIterator[VM]:
    if how == "restored":
        await vm.snapshot(tmp_path / "s")
        await vm.aclose()
        async with VM.restore(tmp_path / "s") as again:
            yield again
    else:
        async with await vm.freeze() as template, template.fork() as again:
            yield again


async def test_whose_address_is_whose_where_one_came_later_than_the_programs_own() -> None:
    own = NetDevice(PasstBackend())
    async with VM(config("s", nets=(NetConfig(passt=True),)), devices=[own]) as vm:
        await vm.start()
        await vm.add(NetConfig(passt=True), timeout=0)
        first, middle, last = vm.nets
        assert middle is own
        assert [net.mac for net in config_of(vm).nets] == [first.mac.hex(":"), last.mac.hex(":")]


async def test_a_pool_of_forks() -> None:
    async with await frozen(rng=RngConfig()) as template, template.pool(warm=3, max=5) as pool:
        await pool.warmed(30)
        seen = set()
        for _ in range(6):
            async with pool.acquire() as child:
                assert child.state is VMState.RUNNING
                await counts_on(child)
                seen.add(child.name)
        assert len(seen) == 6
    assert template.forks == 0


async def test_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    devices = {"console": ConsoleConfig(), "rng": RngConfig(), "vsock": VsockConfig()}
    disks = (DiskConfig(path=tmp_path / "disk"),)
    async with await frozen(**devices, disks=disks) as template, template.fork() as child:
        await child.resume()
    before = Remains.now()
    async with await frozen(**devices, disks=disks) as template:
        for _ in range(5):
            async with template.fork() as child:
                await child.resume()
                await counts_on(child)
    gc.collect()  # an overlay's map, 4 KiB, goes in a circle
    await before.check()


async def test_a_template_may_be_closed_while_a_fork_of_its_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").write_bytes(b"base" * 1024)
    template = await frozen(disks=(DiskConfig(path=tmp_path / "disk"),))
    opening = BlkDevice.open

    async def close_first(device: BlkDevice) -> None:
        template.close()
        await opening(device)

    monkeypatch.setattr(BlkDevice, "open", close_first)
    before = descriptors()
    async with template.fork() as child:
        image = child.device("disk0", BlkDevice)._image
        assert image is not None
        assert image.base is not None
        assert os.pread(image.base.image.fd, 8, 0) == b"basebase"
        await child.resume()
        await counts_on(child)
    assert descriptors() < before
    DiskImage.open(tmp_path / "disk").close()  # nobody has it locked any more


async def test_a_snapshot_has_no_disk_that_goes_with_the_fork(tmp_path: Path) -> None:
    """The image that the configuration names lacks what the fork has written."""
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    async with await frozen(disks=(DiskConfig(path=tmp_path / "disk"),)) as template:
        async with template.fork() as child:
            with pytest.raises(SnapshotError, match=r"disk0 cannot be in a snapshot.*has no name"):
                await child.snapshot(tmp_path / "s")
            assert not (tmp_path / "s").exists()
            await child.resume()
            await counts_on(child)
        (tmp_path / "own").write_bytes(bytes(1 << 20))
        async with template.fork(disks=[DiskConfig(path=tmp_path / "own")]) as child:
            await child.snapshot(tmp_path / "s")
    async with VM.restore(tmp_path / "s") as again:
        await again.resume()
        await counts_on(again)


async def test_whoever_waits_for_a_guest_that_is_frozen_finds_it_stopped(tmp_path: Path) -> None:
    """And not one without memory, that could be frozen once more, saved, or let run."""
    async with VM(config("s")) as vm:
        await vm.start()
        await counts_on(vm)
        await vm.pause()
        first, *others = await asyncio.gather(
            vm.freeze(), vm.resume(), vm.freeze(), vm.snapshot(tmp_path / "s"), vm.pause(), return_exceptions=True
        )
        assert [type(other) for other in others] == [StateError] * 4
        assert isinstance(first, Template)
        assert not (tmp_path / "s").exists()
    async with first, first.fork() as child:
        await child.resume()
        await counts_on(child)


async def test_what_waits_for_its_turn_has_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool of many that are paused costs the host none, and one that cannot have them has ended."""

    def refuse(_self: Vcpu, *_args: object, **_kwargs: object) -> None:
        raise HostError("starting a thread", errno.EAGAIN)

    async with await frozen(cpus=2) as template, template.fork() as child, template.fork() as other:
        assert [guest.state for guest in (child, other)] == [VMState.PAUSED] * 2
        assert not of_vcpus()
        await child.resume()
        await counts_on(child)
        await until(lambda: len(of_vcpus()) == 2)
        with monkeypatch.context() as patch:
            patch.setattr(Vcpu, "start", refuse)
            with pytest.raises(HostError, match="starting a thread"):
                await other.resume()
        assert other.state is VMState.STOPPED
        assert other.status is not None
        assert "it could not go on" in other.status.detail
        await counts_on(child)


def test_a_disk_of_another_process_has_no_overlays(tmp_path: Path) -> None:
    disk = DiskConfig(vhost_user=True, socket=tmp_path / "sock")
    with pytest.raises(SnapshotError, match=r"another process's \(vhost_user=on\)"):
        DiskBases.opened(config("s", disks=(disk,)))


@pytest.mark.parametrize("first", ["template", "fork"])
async def test_whoever_has_the_memory_last_gives_it_back_in_a_thread(
    first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base of some GiB takes a second to go, and the other guests' event loop would wait for that."""
    closed_by = whoever_closes(monkeypatch)
    async with AsyncExitStack() as outer, AsyncExitStack() as inner:
        template = await (inner if first == "template" else outer).enter_async_context(await frozen())
        child = await (outer if first == "template" else inner).enter_async_context(template.fork())
        await child.resume()
        await inner.aclose()
        assert not closed_by
        await outer.aclose()
    assert len(closed_by) == 1
    assert closed_by[0] is not threading.main_thread()
    assert bases() == 0


@pytest.mark.parametrize("woken", [False, True], ids=["while it waits", "as it is woken"])
async def test_so_does_whoever_gives_up_to_make_it(woken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any step: nobody has heard of it yet, or will."""

    async def freezes() -> None:
        async with VM(config("s")) as vm:
            await vm.start()
            async with await vm.freeze():
                pass

    await freezes()
    remains = Remains.now()
    closed_by = whoever_closes(monkeypatch)
    assert await cancel_everywhere(freezes, remains, woken=woken) > 8
    assert closed_by[1:]
    assert threading.main_thread() not in closed_by
