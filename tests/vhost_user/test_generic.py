"""A device that the monitor knows by its number alone: all of it is the back end's."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.config import GenericVhostUserConfig
from aiovmm.config.options import parse_generic_vhost_user
from aiovmm.devices.virtio.rng import RngDevice
from aiovmm.devices.virtio.rng.source import open_source
from aiovmm.devices.virtio.vhost_user import VhostUserGeneric
from aiovmm.errors import ConfigError
from aiovmm.testing.vhost_user_backend import VhostUserServer
from aiovmm.virtqueue import Queue, VirtioDevice
from tests.vhost_user.bench import Guest
from tests.vhost_user.test_configured import plugged


class Selector(VirtioDevice):
    """As virtio-input has it: byte 0 selects what the rest of the configuration says."""

    device_id = 18
    name = "input"
    queue_sizes = (16, 16)
    features = 1 << 3

    def __init__(self) -> None:
        self.config = bytearray(136)

    async def run(self, queues: list[Queue], features: int) -> None:
        await asyncio.Event().wait()

    def read_config(self, offset: int, size: int) -> bytes:
        return bytes(self.config[offset : offset + size]).ljust(size, b"\0")

    def write_config(self, offset: int, data: bytes) -> None:
        self.config[offset : offset + len(data)] = data
        self.config[8:] = b"name %d" % self.config[0] + bytes(122)
        del self.config[136:]


async def test_requests_are_the_back_ends(tmp_path: Path) -> None:
    socket = tmp_path / "s"
    rng = RngDevice(lambda: open_source(Path("/dev/urandom")))
    async with VhostUserServer(rng, socket):
        device = VhostUserGeneric.from_config(
            parse_generic_vhost_user(f"device_type=rng,socket={socket},queue_sizes=64")
        )
        assert device.device_id == 4
        async with Guest(device) as guest:
            assert device.queue_sizes == (64,)
            for _ in range(2):
                await guest.driver.start()
                answers = [await guest.driver.request(0, [], [32]) for _ in range(3)]
                assert [len(answer) for answer in answers] == [32] * 3
                assert len(set(answers)) == 3, "of the back end's generator"
                await guest.driver.reset()


async def test_what_a_selector_selects_is_read_after_it_was_written(tmp_path: Path) -> None:
    socket = tmp_path / "s"
    async with VhostUserServer(Selector(), socket):
        text = f"device_type=18,socket={socket},queue_sizes=[16,16]"
        device = VhostUserGeneric.from_config(parse_generic_vhost_user(text))
        await device.open()
        assert device.features == 1 << 3
        for number in (7, 9):
            told = device.write_config(0, bytes([number]))
            assert told is not None
            await told
            assert device.read_config(8, 6) == b"name %d" % number
        await device.close()


async def test_more_queues_than_the_back_end_has_are_refused(tmp_path: Path) -> None:
    async with VhostUserServer(Selector(), tmp_path / "s"):
        device = VhostUserGeneric(tmp_path / "s", 18, (16,) * 3)
        with pytest.raises(ConfigError, match="the back end has 2 queues, 3 are wanted"):
            await device.open()


def test_it_is_plugged_after_the_entropy_as_in_the_reference() -> None:
    config = GenericVhostUserConfig(device_type=41, socket=Path("/s"), queue_sizes=(16, 16))
    (device,) = plugged(generic_vhost_user=(config,))
    assert isinstance(device, VhostUserGeneric)
    assert (device.device_id, device.queue_sizes) == (41, (16, 16))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("socket=/s,queue_sizes=[8]", r"device_type: is missing"),
        ("device_type=4,queue_sizes=[8]", r"socket: is missing"),
        ("device_type=4,socket=/s", r"queue_sizes: is missing"),
        ("device_type=4,socket=/s,queue_sizes=[]", r"num_queues: 0 is not in"),
        ("device_type=4,socket=/s,queue_sizes=[100]", r"queue_size: 100 is not a power of two"),
        ("device_type=64,socket=/s,queue_sizes=[8]", r"device_type: 64 is not in 1..63"),
        ("device_type=watchdog,socket=/s,queue_sizes=[8]", r"35 cannot be another process's: a back end has no way"),
        ("virtio_id=iommu,socket=/s,queue_sizes=[8]", r"23 cannot be another process's"),
        ("device_type=toaster,socket=/s,queue_sizes=[8]", r"'toaster' is no kind of virtio device"),
        ("device_type=4,socket=/s,queue_sizes=[8],iommu=on", r"iommu: cannot be on"),
    ],
)
def test_what_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_generic_vhost_user(text)


@given(st.integers(1, 63), st.lists(st.integers(1, 15).map(lambda n: 1 << n), min_size=1, max_size=8))
def test_any_kind_and_queues_are_taken(kind: int, sizes: list[int]) -> None:
    text = f"device_type={kind},socket=/s,queue_sizes=[{','.join(map(str, sizes))}]"
    if kind not in (23, 35):
        parsed = parse_generic_vhost_user(text)
        assert (parsed.device_type, list(parsed.queue_sizes)) == (kind, sizes)
