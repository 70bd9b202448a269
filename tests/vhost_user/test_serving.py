"""Both ends: devices of ours behind a socket, under a driver of virtio-pci."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from pathlib import Path

import pytest

from aiovmm.devices.virtio.blk import BlkDevice
from aiovmm.devices.virtio.vhost_user import VhostUserBlk
from aiovmm.devices.virtio.vhost_user.device import VhostUserDevice
from aiovmm.errors import ConfigError, GuestError, HostError, PeerError, UsageError
from aiovmm.irq import RecordingLine
from aiovmm.memory import GuestMemory
from aiovmm.testing.vhost_user_backend import PROTOCOL_FEATURES, VhostUserServer
from aiovmm.vhost_user import Timing
from aiovmm.vhost_user.protocol import ProtocolFeature
from aiovmm.virtqueue.config import QueueConfig
from aiovmm.virtqueue.features import VERSION_1
from tests.pci.echo import Echo
from tests.vhost_user.bench import Guest
from tests.vhost_user.disks import RamDisk, read_header, write_header


class EchoFrontend(VhostUserDevice):
    device_id = 4
    known_features = 1 << 3
    config_size = 8
    wanted = VhostUserDevice.wanted | ProtocolFeature.CONFIG | ProtocolFeature.BACKEND_REQ


def echo_frontend(path: Path) -> EchoFrontend:
    return EchoFrontend(path, Echo.queue_sizes, name="echo", timing=Timing(connect=1, answer=5, patience=5))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vu.sock"


async def test_a_disk_served_elsewhere_reads_and_writes_on_every_queue(path: Path) -> None:
    data = bytearray(1 << 20)
    async with (
        VhostUserServer(RamDisk(data, queues=3), path),
        Guest(VhostUserBlk(path, num_queues=3, queue_size=64)) as guest,
    ):
        await guest.driver.start()
        for queue in range(3):
            content = os.urandom(2048)
            assert await guest.driver.request(queue, [write_header(4 * queue), content], [1]) == b"\0"
            assert data[2048 * queue : 2048 * queue + 2048] == content
            assert await guest.driver.request(queue, [read_header(4 * queue)], [2048, 1]) == content + b"\0"


async def test_the_real_block_device_can_be_served_to_another_process(path: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    from aiovmm.devices.virtio.blk import DiskImage

    async with VhostUserServer(BlkDevice(lambda: DiskImage.open(image)), path), Guest(VhostUserBlk(path)) as guest:
        assert int.from_bytes(guest.device.read_config(0, 8), "little") == 2048
        await guest.driver.start()
        content = os.urandom(8192)
        assert await guest.driver.request(0, [write_header(8), content], [1]) == b"\0"
        assert await guest.driver.request(0, [read_header(8)], [8192, 1]) == content + b"\0"
    assert image.read_bytes()[4096 : 4096 + 8192] == content


async def test_features_and_configuration_are_the_back_ends(path: Path) -> None:
    disk = RamDisk(bytearray(1 << 20), queues=4)
    async with VhostUserServer(disk, path), Guest(VhostUserBlk(path, num_queues=2)) as guest:
        await guest.driver.start()
        assert guest.device.features == disk.features
        assert guest.device.read_config(0, 8) == disk.config[:8]
        assert guest.device.read_config(34, 2) == b"\2\0"  # as many queues as the driver has


@pytest.mark.parametrize(
    "without", [ProtocolFeature(0), ProtocolFeature.REPLY_ACK, ProtocolFeature.STATUS, PROTOCOL_FEATURES]
)
async def test_a_back_end_may_lack_any_protocol_feature(path: Path, without: ProtocolFeature) -> None:
    device = EchoFrontend(path, Echo.queue_sizes, name="echo")
    device.frontend.config_size = 0
    async with VhostUserServer(Echo(), path, protocol=PROTOCOL_FEATURES & ~without), Guest(device) as guest:
        for _ in range(3):
            await guest.driver.start()
            assert await guest.driver.request(0, [b"abc"], [3]) == b"cba"


async def test_two_hundred_resets_under_load_leave_nothing(path: Path) -> None:
    async with VhostUserServer(Echo(), path), Guest(echo_frontend(path)) as guest:
        for _ in range(200):
            await guest.driver.start()
            queue = guest.driver.queues[0]
            for _ in range(8):
                queue.add([b"hello"], [5])
            queue.kick()
            (used, *_) = await queue.used()
            assert used.data == b"olleh"
            await guest.driver.reset()


async def test_a_configuration_change_reaches_the_driver(path: Path) -> None:
    echo = Echo()
    async with VhostUserServer(echo, path), Guest(echo_frontend(path)) as guest:
        await guest.driver.start()
        generation = guest.driver.common(0x15, 1)
        echo.config[:] = b"CHANGED!"
        echo.config_changed()
        await guest.driver.config_interrupt()
        assert guest.device.read_config(0, 8) == b"CHANGED!"
        assert guest.driver.common(0x15, 1) != generation


async def test_what_the_driver_writes_to_the_configuration_arrives(path: Path) -> None:
    echo = Echo()
    async with VhostUserServer(echo, path), Guest(echo_frontend(path)) as guest:
        await guest.driver.start()
        pending = guest.device.write_config(2, b"xy")
        assert guest.device.read_config(0, 8) == b"abxyefgh"
        assert pending is not None
        await pending
        assert echo.config == b"abxyefgh", "the driver's write completes when the back end has it"


async def test_however_much_the_driver_writes_there_is_one_task_and_the_last_word_counts(path: Path) -> None:
    echo, device = Echo(), echo_frontend(path)
    async with VhostUserServer(echo, path), Guest(device) as guest:
        await guest.driver.start()
        before = len(asyncio.all_tasks())
        for n in range(1000):
            pending = guest.device.write_config(n % 4, bytes([n % 251, n % 241]))
            assert isinstance(pending, Coroutine)
            pending.close()  # as of a vCPU that is stopped
        assert len(asyncio.all_tasks()) <= before + 1
        assert len(device.frontend._written) == 4
        pending = guest.device.write_config(1, b"xyz")
        assert pending is not None
        await pending
        assert echo.config == guest.device.read_config(0, 8)
        assert bytes(echo.config[1:4]) == b"xyz"


async def test_a_device_that_breaks_there_needs_a_reset_here(path: Path) -> None:
    errors: list[Exception] = []
    async with VhostUserServer(Echo(), path, on_error=errors.append), Guest(echo_frontend(path)) as guest:
        await guest.driver.start()
        guest.driver.queues[0].add([b"break"], [5])
        guest.driver.queues[0].kick()
        await guest.driver.config_interrupt()
        assert guest.driver.status & 64
        assert "broken" in str(await guest.broken())
        assert "broken on demand" in str(errors[0])
        await guest.driver.start()
        assert await guest.driver.request(0, [b"abc"], [3]) == b"cba"


async def test_nobody_at_the_socket_is_a_clear_error(path: Path) -> None:
    with pytest.raises(HostError, match="is the back end running"):
        async with Guest(VhostUserBlk(path, timing=Timing(connect=0.1))):
            pass


async def test_more_queues_than_the_back_end_has_are_refused(path: Path) -> None:
    async with VhostUserServer(RamDisk(bytearray(4096)), path):
        with pytest.raises(ConfigError, match="the back end has 1 queues"):
            async with Guest(VhostUserBlk(path, num_queues=2)):
                pass


async def test_a_disk_without_a_capacity_is_refused(path: Path) -> None:
    protocol = PROTOCOL_FEATURES & ~ProtocolFeature.CONFIG
    async with VhostUserServer(RamDisk(bytearray(4096)), path, protocol=protocol):
        with pytest.raises((ConfigError, PeerError), match="CONFIG"):
            async with Guest(VhostUserBlk(path)):
                pass


async def test_read_only_is_the_back_ends_to_promise(path: Path) -> None:
    async with VhostUserServer(RamDisk(bytearray(4096)), path):
        with pytest.raises(ConfigError, match="read-only"):
            async with Guest(VhostUserBlk(path, readonly=True)):
                pass


async def test_private_memory_cannot_be_shared(path: Path) -> None:
    memory = GuestMemory.create([(0, 1 << 20)], shared=False)
    async with VhostUserServer(Echo(), path):
        device = echo_frontend(path)
        await device.open()
        with pytest.raises(UsageError, match="private"):
            device.make_backend(memory, lambda exc: None, lambda coro: asyncio.ensure_future(coro))
        await device.close()
    memory.close()


@pytest.mark.parametrize(
    "config",
    [
        QueueConfig(64, desc=0x1000, avail=0x2000, used=1 << 40, ready=True),
        QueueConfig(64, desc=(1 << 64) - 16, avail=0x2000, used=0x3000, ready=True),
        QueueConfig(64, 63, desc=0x1000, avail=0x2000, used=0x3000, ready=True),
        QueueConfig(64, desc=0x1001, avail=0x2000, used=0x3000, ready=True),
    ],
)
async def test_rings_that_cannot_be_are_not_told_to_anybody(path: Path, config: QueueConfig) -> None:
    """A guest's mistake is its device's: the back end hears nothing of it."""
    async with VhostUserServer(Echo(), path) as server, Guest(echo_frontend(path)) as guest:
        line = RecordingLine()
        with pytest.raises(GuestError):
            await guest.backend.activate([config], VERSION_1, [0], [line], line)
        assert server.session is not None
        assert server.session.state.regions == ()
        await guest.backend.reset()
        await guest.driver.start()
        assert await guest.driver.request(0, [b"abc"], [3]) == b"cba"
