"""A back end that is not there yet: whichever of the two is started first, and however that is cut short."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from aiovmm import (
    VM,
    ConfigError,
    DiskConfig,
    EventKind,
    ExitReason,
    FsConfig,
    HostError,
    MemoryConfig,
    RebootPolicy,
    StateError,
    VsockConfig,
)
from aiovmm.devices.virtio.vhost_user import VhostUserBlk
from aiovmm.testing.vhost_user_backend import VhostUserServer
from aiovmm.vhost_user import Timing, frontend
from aiovmm.vhost_user.channel import ChannelClosed
from tests.open_files import descriptors
from tests.vhost_user.bench import Guest
from tests.vhost_user.disks import RamDisk, read_header
from tests.vm.guest import config, counts_on, event, until

T = TypeVar("T")
LONG = 40.0  # seconds: less than a back end is waited for, and more than anything else takes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vu.sock"


@pytest.fixture(autouse=True)
def told_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontend, "_UNTOLD", 0.0)


def serve(path: Path) -> VhostUserServer:
    return VhostUserServer(RamDisk(bytearray(1 << 20)), path)


def disk(path: Path, **more: object) -> DiskConfig:
    return DiskConfig(vhost_user=True, socket=path, **more)  # type: ignore[arg-type]


async def soon(work: Awaitable[T]) -> T:
    async with asyncio.timeout(LONG):
        return await work


def is_coming(vm: VM) -> bool:
    """Whether a device is waited for that is to be added."""
    return vm._hotplug is not None and bool(vm._hotplug._coming)


@pytest.mark.parametrize("kind", ["file", "directory", "fifo"])
async def test_what_is_no_socket_is_not_waited_for(kind: str, path: Path) -> None:
    """The kernel says "Connection refused" of these, as of a socket whose back end is yet to come."""
    make: dict[str, Callable[[], None]] = {"file": path.touch, "directory": path.mkdir, "fifo": lambda: os.mkfifo(path)}
    make[kind]()
    with pytest.raises(HostError, match="Socket operation on non-socket") as refused:
        async with asyncio.timeout(LONG):
            await VhostUserBlk(path).open()
    assert refused.value.filename == str(path)


def test_it_is_waited_for_as_long_as_by_the_reference() -> None:
    assert Timing().connect == 60


async def test_one_that_is_started_later(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    device = VhostUserBlk(path)
    async with AsyncExitStack() as stack:
        entering = asyncio.ensure_future(stack.enter_async_context(Guest(device)))
        await until(lambda: bool(caplog.messages))
        await stack.enter_async_context(serve(path))
        guest = await entering
        await guest.driver.start()
        assert (await guest.driver.request(0, [read_header(0)], [512, 1]))[-1:] == b"\0"
    assert [f"waits for its back end at {path}, for 60 s: No such file or directory" in m for m in caplog.messages] == [
        True
    ]


async def test_one_that_goes_away_at_the_door_and_comes_again(path: Path) -> None:
    """As a daemon does that is started anew, or whose socket somebody tries first."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen()
        listener.setblocking(False)
        device = VhostUserBlk(path)
        opening = asyncio.ensure_future(device.open())
        peer, _ = await asyncio.get_running_loop().sock_accept(listener)
        peer.close()
    os.unlink(path)
    async with serve(path):
        await soon(opening)
        await device.close()


async def test_one_that_does_so_every_time_is_told_of_in_the_end(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen()
        listener.setblocking(False)

        async def turn_away() -> None:
            while True:
                peer, _ = await asyncio.get_running_loop().sock_accept(listener)
                peer.close()

        turning = asyncio.ensure_future(turn_away())
        with pytest.raises(ChannelClosed):
            await VhostUserBlk(path, timing=Timing(connect=0.2)).open()
        turning.cancel()


async def test_they_are_waited_for_side_by_side(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    vm = VM(config("s", disks=(disk(first), disk(second))))
    entering = asyncio.ensure_future(vm.__aenter__())
    async with serve(second) as server:
        await until(lambda: server.session is not None)
        async with serve(first):
            await soon(entering)
            await vm.aclose()


async def test_what_is_wrong_with_another_device_is_said_at_once(path: Path, tmp_path: Path) -> None:
    image = DiskConfig(path=tmp_path / "none.img")
    for wanted in (
        {"disks": (disk(path), image)},
        {"disks": (image,), "fs": (FsConfig(tag="t", socket=path),)},
        {"disks": (disk(path),), "vsock": VsockConfig(socket=tmp_path / "none.img" / "vsock")},
    ):
        with pytest.raises(HostError, match=r"none\.img"):
            await soon(VM(config("s", **wanted)).__aenter__())


async def test_what_is_wrong_with_another_back_end_is_said_at_once(tmp_path: Path) -> None:
    there, absent = tmp_path / "there", tmp_path / "absent"
    async with serve(there):
        with pytest.raises(ConfigError, match="the back end has 1 queues"):
            await soon(VM(config("s", disks=(disk(absent), disk(there, num_queues=2)))).__aenter__())


async def test_a_guest_that_ends_ends_the_wait_for_what_was_to_be_added(path: Path) -> None:
    async with VM(config("s", memory=MemoryConfig(4 << 20, shared=True))) as vm:
        await vm.start()
        await counts_on(vm)
        before = descriptors()
        adding = asyncio.ensure_future(vm.add(disk(path)))
        await until(lambda: is_coming(vm))
        await vm.kill()
        with pytest.raises(StateError, match="the guest has ended"):
            await soon(adding)
        assert descriptors() <= before


async def test_a_guest_is_paused_saved_and_reset_while_what_was_to_be_added_is_waited_for(
    path: Path, tmp_path: Path
) -> None:
    """Its name is taken, and it comes into the machine that there is by then."""
    made = config("s", memory=MemoryConfig(4 << 20, shared=True), on_reboot=RebootPolicy.RESTART)
    (image := tmp_path / "image").write_bytes(bytes(1 << 20))
    async with VM(made) as vm:
        await vm.start()
        adding = asyncio.ensure_future(vm.add(replace(disk(path), id="remote"), timeout=0))
        await until(lambda: is_coming(vm))
        await soon(vm.pause())
        await soon(vm.snapshot(tmp_path / "snapshot"))
        await soon(vm.resume())
        with pytest.raises(ConfigError, match="'remote' names two devices"):
            await soon(vm.add(DiskConfig(path=image, id="remote"), timeout=0))
        assert await soon(vm.add(DiskConfig(path=image), timeout=0)) == "disk0"
        vm.machine.board.ended(ExitReason.REBOOT, "by the guest")
        await event(vm, EventKind.REBOOTED)
        await counts_on(vm)
        assert not adding.done()
        async with serve(path):
            assert await soon(adding) == "remote"
            assert {"disk0", "remote"} == set(vm.machine.devices.functions)
            assert [entry.id for entry in vm.config.disks] == ["disk0", "remote"]
            await vm.remove("remote", timeout=0, force=True)
        await counts_on(vm)
