"""A back end that dies and comes back: nothing that it acknowledged is lost, nothing is done twice that must not be."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from pathlib import Path

import pytest

from aiovmm.config import FsConfig
from aiovmm.devices.virtio.vhost_user import VhostUserBlk, VhostUserFs
from aiovmm.errors import ConfigError, PeerError
from aiovmm.testing.vhost_user_backend import PROTOCOL_FEATURES, VhostUserServer
from aiovmm.vhost_user import Timing
from aiovmm.vhost_user.protocol import ProtocolFeature
from tests.limits import HANGS
from tests.pci.echo import Echo, until
from tests.vhost_user.bench import Guest
from tests.vhost_user.disks import RamDisk, read_header, write_header
from tests.vhost_user.killable import Daemon
from tests.vhost_user.test_serving import echo_frontend

QUICK = Timing(connect=5, answer=10, patience=10)
ROOT = Path(__file__).resolve().parents[2]
NO_RECORD = PROTOCOL_FEATURES & ~ProtocolFeature.INFLIGHT_SHMFD


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vu.sock"


@pytest.mark.timeout(300)
async def test_a_disk_killed_again_and_again_under_load_loses_nothing(path: Path, tmp_path: Path) -> None:
    """Each round writes blocks at depth 32 and kills the back end amid them; every acknowledged block holds what was last
    written, and every request is acknowledged exactly once (the driver simulator refuses a second time)."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4 << 20))
    daemon = Daemon(path, image, delay=0.001)
    daemon.start()
    rng = random.Random(5)
    expected: dict[int, bytes] = {}
    async with Guest(
        VhostUserBlk(path, queue_size=128, timing=Timing(connect=HANGS, answer=HANGS, patience=60))
    ) as guest:
        await guest.driver.start()
        queue = guest.driver.queues[0]
        outstanding: dict[int, tuple[int, bytes]] = {}
        kills = 0
        for round_ in range(600):
            while len(outstanding) < 32:
                block = rng.choice([b for b in range(1024) if b not in {x for x, _ in outstanding.values()}])
                content = rng.randbytes(64) * 64
                outstanding[queue.add([write_header(block * 8), content], [1])] = block, content
            queue.kick()
            if round_ % 150 == 75:
                await daemon.kill()
                daemon.start()
                kills += 1
            for used in await queue.used(timeout=2 * HANGS):
                assert used.data == b"\0"
                block, content = outstanding.pop(used.head)
                expected[block] = content
        for used in await queue.used(len(outstanding), timeout=2 * HANGS):
            block, content = outstanding.pop(used.head)
            expected[block] = content
        assert kills == 4
        assert guest.backend.losses == 4
        for block in sorted(expected)[::16]:
            data = await guest.driver.request(0, [read_header(block * 8)], [4096, 1])
            assert data[:-1] == expected[block]
    await daemon.kill()
    stored = image.read_bytes()
    assert len(expected) > 900
    for block, content in expected.items():
        assert hashlib.sha256(stored[block * 4096 : block * 4096 + 4096]).digest() == hashlib.sha256(content).digest()


async def test_requests_that_were_taken_and_not_answered_are_done_by_the_successor(path: Path) -> None:
    data = bytearray(1 << 20)
    first, second = RamDisk(data), RamDisk(data)
    first.gate.clear()
    async with VhostUserServer(first, path) as server:
        guest = Guest(VhostUserBlk(path, timing=QUICK))
        async with guest:
            await guest.driver.start()
            queue = guest.driver.queues[0]
            for n in range(5):
                queue.add([write_header(n), bytes([n + 1]) * 512], [1])
            queue.kick()
            await until(lambda: first.taken == 1)
            await server.__aexit__(None, None, None)
            assert not queue.poll()
            async with VhostUserServer(second, path):
                used = await queue.used(5)
                assert [u.data for u in used] == [b"\0"] * 5
                assert second.taken == 5
                assert data[: 5 * 512] == b"".join(bytes([n + 1]) * 512 for n in range(5))
                assert guest.errors == []


async def test_while_it_is_away_requests_wait_and_the_loop_sleeps(path: Path) -> None:
    async with Served(path) as (guest, server):
        await server.__aexit__(None, None, None)
        await until(lambda: not guest.backend.connected)
        queue = guest.driver.queues[0]
        queue.add([b"abc"], [3])
        queue.kick()
        before = asyncio.get_running_loop().time()
        spent = os.times()
        await asyncio.sleep(0.5)
        after = os.times()
        assert asyncio.get_running_loop().time() - before >= 0.5
        assert after.user + after.system - spent.user - spent.system < 0.25
        assert not queue.poll()
        async with VhostUserServer(Echo(), path):
            (used,) = await queue.used()
            assert used.data == b"cba"


class Served:
    """A live echo device, and the server that serves it."""

    def __init__(self, path: Path, protocol: ProtocolFeature = PROTOCOL_FEATURES, patience: float = 10.0) -> None:
        self._server = VhostUserServer(Echo(), path, protocol=protocol)
        device = echo_frontend(path)
        device.frontend.timing = Timing(connect=1, answer=5, patience=patience)
        self._guest = Guest(device)

    async def __aenter__(self) -> tuple[Guest, VhostUserServer]:
        await self._server.__aenter__()
        await self._guest.__aenter__()
        await self._guest.driver.start()
        return self._guest, self._server

    async def __aexit__(self, *exc: object) -> None:
        await self._guest.__aexit__(*exc)  # type: ignore[arg-type]
        await self._server.__aexit__(None, None, None)


async def test_without_a_record_an_idle_disk_goes_on(path: Path) -> None:
    async with Served(path, NO_RECORD) as (guest, server):
        assert await guest.driver.request(0, [b"abc"], [3]) == b"cba"
        await server.__aexit__(None, None, None)
        async with VhostUserServer(Echo(), path, protocol=NO_RECORD):
            await until(lambda: guest.backend.connected)
            assert await guest.driver.request(0, [b"abc"], [3]) == b"cba"


async def test_without_a_record_requests_in_flight_are_not_guessed(path: Path) -> None:
    """To do a write again that was acknowledged could put old data over new; to forget it would lose it."""
    disk = RamDisk(bytearray(4096))
    disk.gate.clear()
    async with (
        VhostUserServer(disk, path, protocol=NO_RECORD) as server,
        Guest(VhostUserBlk(path, timing=QUICK)) as guest,
    ):
        await guest.driver.start()
        guest.driver.queues[0].add([write_header(0), bytes(512)], [1])
        guest.driver.queues[0].kick()
        await until(lambda: disk.taken == 1)
        await server.__aexit__(None, None, None)
        async with VhostUserServer(RamDisk(bytearray(4096)), path, protocol=NO_RECORD):
            error = await guest.broken()
            assert isinstance(error, PeerError)
            assert "in flight" in str(error)
            assert guest.driver.status & 64
            await guest.driver.start()
            assert await guest.driver.request(0, [read_header(0)], [512, 1]) == bytes(513)


async def test_one_that_does_not_come_back_is_given_up(path: Path) -> None:
    async with Served(path, patience=0.3) as (guest, server):
        await server.__aexit__(None, None, None)
        assert "did not come back within 0.3 s" in str(await guest.broken())
        assert guest.driver.status & 64
        await guest.driver.reset()


async def test_a_guest_that_starts_while_it_is_away_waits_for_it(path: Path) -> None:
    async with Served(path) as (guest, server):
        await guest.driver.reset()
        await server.__aexit__(None, None, None)
        await until(lambda: not guest.backend.reachable)
        await guest.driver.start()
        queue = guest.driver.queues[0]
        queue.add([b"abc"], [3])
        queue.kick()
        async with VhostUserServer(Echo(), path):
            (used,) = await queue.used()
            assert used.data == b"cba"


async def test_a_reset_while_it_is_away_does_not_wait(path: Path) -> None:
    async with Served(path) as (guest, server):
        await server.__aexit__(None, None, None)
        await until(lambda: not guest.backend.connected)
        async with asyncio.timeout(HANGS):
            await guest.driver.reset()


async def test_another_device_at_the_same_socket_is_refused(path: Path) -> None:
    async with Served(path) as (guest, server):
        await server.__aexit__(None, None, None)
        other = Echo()
        other.features = 0
        async with VhostUserServer(other, path):
            assert "came back with other features" in str(await guest.broken())
            await guest.driver.reset()


async def test_what_the_driver_wrote_to_the_configuration_is_told_again(path: Path) -> None:
    async with Served(path) as (guest, server):
        pending = guest.device.write_config(0, b"ABCD")
        assert pending is not None
        await pending
        pending = guest.device.write_config(0, b"A")  # takes nothing back of the first
        assert pending is not None
        await pending
        await server.__aexit__(None, None, None)
        await until(lambda: not guest.backend.connected)
        assert guest.device.write_config(2, b"Cd") is None, "nobody to wait for"
        again = Echo()
        async with VhostUserServer(again, path):
            await until(lambda: again.config == b"ABCdefgh")
            await until(lambda: guest.backend.connected)
            assert guest.device.read_config(0, 8) == b"ABCdefgh"


async def test_a_file_system_has_as_many_queues_as_messages_can_name(path: Path) -> None:
    """Of a ring's number 8 bits go with its eventfds; the one for what is urgent is beside those of the configuration."""
    most = 255
    config = FsConfig(tag="tag", socket=path, num_queues=most, queue_size=64)

    class Files(Echo):
        device_id = 26
        features = 0
        queue_sizes = (64,) * (1 + most)  # type: ignore[assignment]

    async with VhostUserServer(Files(), path), Guest(VhostUserFs.from_config(config)) as guest:
        await guest.driver.start()
        assert guest.backend.connected
        await guest.driver.reset()
    with pytest.raises(ConfigError, match=r"fs\.num_queues: 256 is not in 1\.\.255"):
        FsConfig(tag="tag", socket=path, num_queues=most + 1)


async def test_the_session_of_a_file_system_does_not_survive_its_server(path: Path) -> None:
    class Files(Echo):
        device_id = 26
        features = 0
        queue_sizes = (64, 64)

    fs = VhostUserFs(path, "tag", queue_size=64, timing=QUICK)
    async with VhostUserServer(Files(), path) as server, Guest(fs) as guest:
        await guest.driver.start()
        assert guest.device.read_config(0, 40) == b"tag".ljust(36, b"\0") + b"\1\0\0\0"
        await server.__aexit__(None, None, None)
        assert "state of its session" in str(await guest.broken())
        await guest.driver.reset()
