"""Rate limits: the bucket by itself, and disks and network cards behind one."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm import DiskConfig, PayloadConfig, RateLimit, RateLimitGroupConfig, VMConfig
from aiovmm.config.options import parse_disk, parse_net, parse_rate_limit_group
from aiovmm.devices.limits import Limiter
from aiovmm.devices.limits.bucket import UNLIMITED, Bucket
from aiovmm.devices.virtio.blk import BlkDevice, DiskImage
from aiovmm.errors import ConfigError, UsageError
from aiovmm.testing import Harness
from tests.devices.virtio.blk_driver import get_id, read
from tests.devices.virtio.net_guest import NetGuest
from tests.devices.virtio.test_net import arrives, card
from tests.limits import HANGS

MS = 1_000_000
NEVER = RateLimit(ops_size=1, ops_refill_time=1_000_000_000)


# -- the bucket --------------------------------------------------------------------------------------------------------------


@given(
    st.integers(1, 1 << 40),
    st.integers(1, 100_000),
    st.integers(0, 1 << 40),
    st.lists(st.tuples(st.integers(0, 10**10), st.integers(1, 1 << 41))),
)
def test_no_more_goes_through_than_the_rate_and_a_bucket_and_one_request(
    size: int, refill: int, burst: int, takes: Sequence[tuple[int, int]]
) -> None:
    bucket = Bucket(size, refill, burst, 0)
    left, now, before = bucket.full, 0, 0
    for pause, amount in takes:
        now += pause
        left = bucket.refilled(left, now)
        if left > 0:
            assert before <= size + burst + now * size // (refill * MS), "what went before this request"
            left -= amount
            before += amount


@given(st.integers(1, 1 << 40), st.integers(1, 100_000), st.integers(0, 1 << 40))
def test_the_wait_is_as_long_as_it_takes_and_no_longer(size: int, refill: int, debt: int) -> None:
    bucket = Bucket(size, refill, 0, 0)
    wait = bucket.wait(-debt)
    aim = max(1, min(size, size * 5 // refill))
    assert bucket.refilled(-debt, wait) >= aim
    earlier = Bucket(size, refill, 0, 0)
    assert wait == 0 or earlier.refilled(-debt, wait - 1) < aim


def test_a_burst_is_given_once_and_a_bucket_is_never_more_than_full() -> None:
    bucket = Bucket(100, 1000, 50, 0)
    assert bucket.full == 150
    assert bucket.refilled(150, 10**12) == 150, "which nobody has taken"
    assert bucket.refilled(20, 2 * 10**12) == 100


def test_a_bucket_refilled_very_often_brings_no_less() -> None:
    bucket, left = Bucket(3, 1000, 0, 0), 0
    for now in range(0, 1000 * MS + 1, 7 * MS // 5):
        left = bucket.refilled(left, now)
    assert left == 2 or left == 3


def test_size_0_is_no_limit() -> None:
    assert Bucket(0, 0, 0, 0).refilled(-5, 1) == UNLIMITED
    assert Bucket(0, 0, 0, 0).wait(-5) == 0


# -- configuration -------------------------------------------------------------------------------------------------------------


def test_the_references_keys() -> None:
    text = "bw_size=1000000,bw_refill_time=100,bw_one_time_burst=5,ops_size=7,ops_refill_time=200,ops_one_time_burst=9"
    limit = RateLimit(
        bw_size=1_000_000,
        bw_refill_time=100,
        bw_one_time_burst=5,
        ops_size=7,
        ops_refill_time=200,
        ops_one_time_burst=9,
    )
    assert parse_disk(f"path=d,{text}").rate_limit == limit
    assert parse_net(text).rate_limit == limit
    assert parse_disk("path=d,bw_size=1M").rate_limit == RateLimit(bw_size=1 << 20)
    assert parse_disk("path=d,bw_size=0,bw_refill_time=0").rate_limit is None
    assert parse_rate_limit_group("id=g,ops_size=5") == RateLimitGroupConfig(id="g", ops_size=5)


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("path=d,bw_size=1,bw_refill_time=0", "disk.bw_refill_time"),
        ("path=d,ops_one_time_burst=1", "disk.ops_one_time_burst"),
        ("path=d,bw_size=2000000T", "disk.bw_size"),
        ("path=d,rate_limit_group=g,ops_size=1", "disk.rate_limit_group"),
        ("vhost_user=on,socket=s,bw_size=1", "disk.bw_size"),
    ],
)
def test_what_limits_nothing_or_is_nobodys_is_refused(text: str, option: str) -> None:
    with pytest.raises(ConfigError) as exc:
        parse_disk(text)
    assert exc.value.option == option


@pytest.mark.parametrize(
    ("groups", "option"),
    [
        (["id=other,bw_size=1"], "disk.rate_limit_group"),
        (["id=g,bw_size=1", "id=g,bw_size=2"], "rate_limit_group.id"),
        (["id=g"], "rate_limit_group.bw_size"),
    ],
)
def test_groups_are_there_once_and_limit_something(groups: list[str], option: str) -> None:
    with pytest.raises(ConfigError) as exc:
        VMConfig(
            PayloadConfig(Path("k")),
            disks=(DiskConfig(path=Path("d"), rate_limit_group="g"),),
            rate_limit_groups=tuple(parse_rate_limit_group(text) for text in groups),
        )
    assert exc.value.option == option


# -- disks ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(os.urandom(1 << 20))
    return path


async def test_a_disk_gives_no_more_than_its_rate(image: Path) -> None:
    limit = RateLimit(bw_size=16384, bw_refill_time=40)
    async with Harness(BlkDevice(DiskImage.open(image), limiter=Limiter(limit))) as h:
        begin = time.monotonic()
        for sector in range(0, 24 * 8, 8):
            await read(h, sector, 4096)
        assert time.monotonic() - begin >= (23 * 4096 - 16384) / 16384 * 0.04


async def test_requests_count_whatever_they_are(image: Path) -> None:
    async with Harness(
        BlkDevice(DiskImage.open(image), limiter=Limiter(RateLimit(ops_size=4, ops_refill_time=40)))
    ) as h:
        begin = time.monotonic()
        for _ in range(12):
            await get_id(h)
        assert time.monotonic() - begin >= (11 - 4) / 4 * 0.04


async def test_a_limit_is_changed_while_a_request_waits(image: Path) -> None:
    disk = BlkDevice(DiskImage.open(image))
    async with Harness(disk) as h:
        await read(h, 0, 512)
        disk.rate_limit = NEVER
        await read(h, 0, 512)
        waiting = asyncio.create_task(read(h, 8, 512))
        done, _ = await asyncio.wait([waiting], timeout=0.05)
        assert not done
        disk.rate_limit = RateLimit(ops_size=1)
        await asyncio.wait_for(waiting, HANGS)
        disk.rate_limit = NEVER
        await read(h, 0, 512)
        waiting = asyncio.create_task(read(h, 8, 512))
        await asyncio.wait([waiting], timeout=0.05)
        disk.rate_limit = None
        await asyncio.wait_for(waiting, HANGS)
        for sector in range(100):
            await read(h, sector, 512)


async def test_a_reset_of_a_disk_that_waits(image: Path) -> None:
    disk = BlkDevice(DiskImage.open(image), limiter=Limiter(NEVER))
    async with Harness(disk) as h:
        await read(h, 0, 512)
        waiting = asyncio.create_task(read(h, 0, 512))
        await asyncio.wait([waiting], timeout=0.02)
        waiting.cancel()
        await asyncio.wait_for(h.reset(), HANGS)
        disk.rate_limit = None
        await h.start()
        await read(h, 0, 512)


@pytest.mark.parametrize("queues", [1, 3])
async def test_those_behind_one_limit_get_equal_shares(image: Path, queues: int) -> None:
    limiter = Limiter(RateLimit(ops_size=200))
    disks = [
        BlkDevice(DiskImage.open(image, readonly=True), num_queues=queues, name=f"d{i}", limiter=limiter)
        for i in range(3)
    ]
    async with Harness(disks[0]) as a, Harness(disks[1]) as b, Harness(disks[2]) as c:
        done = [0] * (3 * queues)

        async def hammer(i: int) -> None:
            while True:
                await read((a, b, c)[i % 3], 0, 512, queue=i // 3)
                done[i] += 1

        tasks = [asyncio.create_task(hammer(i)) for i in range(len(done))]
        begin = time.monotonic()
        while sum(done) < 400:  # noqa: ASYNC110 - what is waited for is a number
            await asyncio.sleep(0.01)
        took = time.monotonic() - begin
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert took >= (400 - 200 - len(done)) / 200
        assert min(done) > max(done) / 2


# -- network cards ---------------------------------------------------------------------------------------------------------------


async def test_a_card_sends_and_receives_no_more_than_its_rate() -> None:
    async with card(vnet_hdr=False) as (harness, device, sock):
        device.rate_limit = RateLimit(bw_size=10_000, bw_refill_time=50)
        guest = NetGuest(harness)
        guest.fill()
        begin = time.monotonic()
        for i in range(30):
            sock.send(bytes([i]) * 1000)
        for i in range(30):
            assert (await guest.receive()).frame == bytes([i]) * 1000
        received = time.monotonic() - begin
        assert received >= (29 - 10) / 10 * 0.05
        begin = time.monotonic()
        for i in range(30):
            await guest.send(bytes([i]) * 1000)
        assert time.monotonic() - begin >= (29 - 10) / 10 * 0.05
        assert [(await arrives(sock))[0] for _ in range(30)] == list(range(30)), "nothing is lost"


async def test_what_is_no_limit_changes_nothing(image: Path) -> None:
    disk = BlkDevice(DiskImage.open(image), limiter=Limiter(NEVER))
    async with Harness(disk) as h:
        await read(h, 0, 512)
        for wrong in ("10M", 5, {"bw_size": 5}):
            with pytest.raises(UsageError, match="rate_limit = "):
                disk.rate_limit = wrong  # type: ignore[assignment]
        assert disk.rate_limit == NEVER
        disk.rate_limit = None
        await asyncio.wait_for(read(h, 0, 512), HANGS)


async def test_who_waits_no_more_leaves_no_timer() -> None:
    limiter = Limiter(NEVER)
    limiter._allowance.ops = 0
    waiting = asyncio.create_task(limiter.wait())
    await asyncio.sleep(0)
    assert limiter._timer is not None
    waiting.cancel()
    await asyncio.wait([waiting])
    assert limiter._timer is None, "which would be due in eleven days"
