"""Network cards: our own configuration space and control queue, rings switched on and off by the number of pairs."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.config import NetConfig, VhostMode
from aiovmm.devices.virtio.net import features as f
from aiovmm.devices.virtio.vhost_user import VhostUserNet
from aiovmm.errors import ConfigError
from aiovmm.testing.vhost_user_backend import VhostUserServer
from aiovmm.vhost_user import Timing
from aiovmm.virtqueue.device import VirtioDevice
from aiovmm.virtqueue.queue import Queue
from tests.pci.echo import until
from tests.vhost_user.bench import Guest

MAC = bytes.fromhex("2e0000000001")


class Switch(VirtioDevice):
    """What is sent on a pair comes back on the same pair."""

    device_id = 1
    name = "switch"
    features = f.MQ | f.CSUM | f.MRG_RXBUF

    def __init__(self, pairs: int) -> None:
        self.queue_sizes = (64,) * (2 * pairs)
        self.live: list[int] = []

    async def run(self, queues: list[Queue], features: int) -> None:
        self.live = [q.index for q in queues if q.enabled]
        async with asyncio.TaskGroup() as group:
            for receive, send in zip(queues[::2], queues[1::2], strict=True):
                group.create_task(self._loop(receive, send))

    async def _loop(self, receive: Queue, send: Queue) -> None:
        async for chain in send:
            frame = chain.read_all()
            send.push(chain)
            back = await anext(receive)
            back.write(frame)
            receive.push(back)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.sock"


def card(path: Path, pairs: int = 1, mtu: int | None = None) -> VhostUserNet:
    return VhostUserNet(path, mac=MAC, mtu=mtu, pairs=pairs, queue_size=64, timing=Timing(1, 5, 5))


async def exchange(guest: Guest, pair: int, frame: bytes) -> bytes:
    receive, send = guest.driver.queues[2 * pair : 2 * pair + 2]
    receive.add([], [2000])
    receive.kick()
    send.add([frame])
    send.kick()
    (used,) = await receive.used()
    await send.used()
    return used.data


async def test_frames_go_out_and_come_back(path: Path) -> None:
    async with VhostUserServer(Switch(1), path), Guest(card(path, mtu=1400)) as guest:
        await guest.driver.start()
        for n in range(50):
            frame = bytes([n]) * (60 + n)
            assert await exchange(guest, 0, frame) == frame


async def test_the_mac_and_the_mtu_are_ours(path: Path) -> None:
    async with VhostUserServer(Switch(1), path), Guest(card(path, mtu=1400)) as guest:
        assert guest.device.read_config(0, 12) == MAC + struct.pack("<HHH", 1, 1, 1400)
        assert guest.device.features == f.MAC | f.MTU | f.CSUM | f.MRG_RXBUF
        assert len(guest.device.queue_sizes) == 2


class Segmenting(Switch):
    """A back end that offers all there is."""

    features = f.withheld(f.Offloads(checksum=False)) | f.MRG_RXBUF


@pytest.mark.parametrize("off", [{"offload_csum": False}, {"offload_tso": False}, {"offload_ufo": False}, {}])
async def test_offloads_that_are_off_are_not_offered(path: Path, off: dict[str, bool]) -> None:
    config = NetConfig(vhost_user=True, socket=path, mtu=1400, **off)  # type: ignore[arg-type]
    async with VhostUserServer(Segmenting(1), path), Guest(VhostUserNet.from_config(config)) as guest:
        offered = guest.device.features
    assert bool(offered & f.CSUM) is config.offload_csum
    assert bool(offered & (f.HOST_TSO4 | f.GUEST_TSO6)) is (config.offload_csum and config.offload_tso)
    assert bool(offered & (f.HOST_UFO | f.HOST_USO)) is (config.offload_csum and config.offload_ufo)
    assert offered & f.MRG_RXBUF
    assert f.consistent(offered)


async def test_the_driver_chooses_its_pairs(path: Path) -> None:
    switch = Switch(3)
    async with VhostUserServer(switch, path), Guest(card(path, pairs=3)) as guest:
        await guest.driver.start()
        await until(lambda: switch.live == [0, 1])
        command = struct.pack("<BBH", 4, 0, 3)
        assert await guest.driver.request(6, [command], [1]) == b"\0"
        await until(lambda: switch.live == [0, 1, 2, 3, 4, 5])
        for pair in range(3):
            assert await exchange(guest, pair, b"pair" * 20) == b"pair" * 20
        assert await guest.driver.request(6, [struct.pack("<BBH", 4, 0, 2)], [1]) == b"\0"
        await until(lambda: switch.live == [0, 1, 2, 3])
        for wrong in (b"", b"\4\0\0\0", b"\4\0\4\0", b"\1\0\1"):
            assert await guest.driver.request(6, [wrong or b"\0"], [1]) == b"\1"
        await guest.driver.reset()


async def test_the_number_of_pairs_outlives_the_back_end(path: Path) -> None:
    async with VhostUserServer(Switch(2), path) as server, Guest(card(path, pairs=2)) as guest:
        await guest.driver.start()
        assert await guest.driver.request(4, [struct.pack("<BBH", 4, 0, 2)], [1]) == b"\0"
        await server.__aexit__(None, None, None)
        again = Switch(2)
        async with VhostUserServer(again, path):
            await until(lambda: again.live == [0, 1, 2, 3])
            assert await exchange(guest, 1, b"frame" * 20) == b"frame" * 20


async def test_a_driver_without_multiqueue_has_its_control_queue_third(path: Path) -> None:
    async with VhostUserServer(Switch(2), path), Guest(card(path, pairs=2)) as guest:
        await guest.driver.start(guest.device.features & ~f.MQ | 1 << 32, [64, 64, 64])
        assert await guest.driver.request(2, [struct.pack("<BBH", 4, 0, 2)], [1]) == b"\1"
        assert await exchange(guest, 0, b"frame" * 20) == b"frame" * 20


async def test_back_ends_come_to_us_one_after_the_other(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`vhost_mode=server`; the socket goes with the card."""
    config = NetConfig(vhost_user=True, socket=path, vhost_mode=VhostMode.SERVER, queue_size=64)
    coming = VhostUserServer(Switch(1), path, connects=True)
    async with coming, Guest(VhostUserNet.from_config(config)) as guest:
        assert caplog.messages == [f"net: waits for its back end to connect to {path}"]
        await guest.driver.start()
        assert await exchange(guest, 0, b"first" * 20) == b"first" * 20
        await coming.__aexit__(None, None, None)
        async with VhostUserServer(Switch(1), path, connects=True):
            await until(lambda: guest.backend.connected)
            assert await exchange(guest, 0, b"again" * 20) == b"again" * 20
    assert not there(path)


def there(path: Path) -> bool:
    return path.exists()


async def test_who_waits_for_a_back_end_can_be_sent_home(path: Path) -> None:
    device = VhostUserNet(path, listens=True)
    waiting = asyncio.ensure_future(device.open())
    await until(lambda: there(path))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not there(path)


async def test_what_is_no_socket_is_not_replaced_by_one(path: Path) -> None:
    path.write_text("no socket")  # noqa: ASYNC240 - nothing else runs
    with pytest.raises(ConfigError, match=r"net\.socket"):
        await VhostUserNet(path, listens=True).open()


@pytest.mark.parametrize("keys", [{"vhost_mode": VhostMode.SERVER}, {"vhost_mode": VhostMode.SERVER, "tap": "tap0"}])
def test_nobody_is_waited_for_without_a_socket(keys: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"net\.vhost_mode"):
        NetConfig(**keys)


@given(st.integers(0, (1 << 64) - 1))
def test_a_driver_may_take_all_that_is_offered_whatever_the_back_end_has(offered: int) -> None:
    device = card(Path("socket"))
    bits = device.select_features(offered)
    assert device.accepts(bits)
    assert bits & ~(offered | f.MAC) == 0


def test_a_back_end_with_congestion_notification_for_no_segmentation() -> None:
    """DPDK's vhost driver without tso=1."""
    theirs = f.CSUM | f.GUEST_CSUM | f.GUEST_TSO4 | f.GUEST_ECN | f.HOST_ECN | f.MRG_RXBUF
    assert card(Path("socket")).select_features(theirs) == theirs & ~f.HOST_ECN | f.MAC
