"""Balloon, pmem, IOMMU and the embedder's own devices in snapshots."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import struct
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiovmm.config import PmemConfig
from aiovmm.devices.port import PortDevice
from aiovmm.devices.virtio.balloon import BalloonDevice
from aiovmm.devices.virtio.balloon.protocol import PAGE
from aiovmm.devices.virtio.iommu import IommuDevice
from aiovmm.devices.virtio.iommu.domains import Bound, Domains
from aiovmm.devices.virtio.iommu.wire import Attach, Detach, Map, Status, Unmap
from aiovmm.devices.virtio.mem import BLOCK_SIZE, MemDevice
from aiovmm.devices.virtio.mem.protocol import Answer as MemAnswer
from aiovmm.devices.virtio.mem.protocol import Kind
from aiovmm.devices.virtio.pmem import PmemDevice
from aiovmm.errors import GuestFault, HostError, SnapshotError, StateError
from aiovmm.machine.own import load_ports, save_ports
from aiovmm.memory import GuestMemory, MemoryRegion
from aiovmm.pci.saved import suspend_all, unsuspend_all
from aiovmm.pci.virtio import VirtioPci
from aiovmm.runtime.tasks import finish
from aiovmm.testing import Harness
from aiovmm.testing.pci import MESSAGES, RecordingServices
from tests.devices.virtio.test_iommu import EP, Echo, _Later, pair, restart_in_domain
from tests.devices.virtio.test_mem import Driver
from tests.devices.virtio.test_mem import request as mem_request
from tests.saving.stopped import move, pause
from tests.saving.text import damaged, through_text

MIB = 1 << 20


# -- balloon -------------------------------------------------------------------------------------------------------------


async def test_a_balloon_keeps_its_size_and_who_asks_for_statistics_is_answered() -> None:
    first = BalloonDevice(64 * MIB)
    async with Harness(first) as h:
        h.queues[2].add([b"\0\0" + (7).to_bytes(8, "little")])
        h.queues[2].kick()
        asked = asyncio.create_task(first.stats())
        await h.queues[2].used()  # given back for new ones
        await pause(h)
        h.queues[2].add([b"\0\0" + (9).to_bytes(8, "little")])
        h.queues[2].kick()
        assert (await asked).swapped_in == 9
        growing = asyncio.create_task(first.resize(2 * MIB))
        await asyncio.sleep(0)
        h.device.write_config(4, (512).to_bytes(4, "little"))
        await growing
        other = BalloonDevice(64 * MIB)
        await move(h, other)
        assert (other.target, other.actual) == (2 * MIB, 2 * MIB)
        assert other.read_config(0, 8) == (512).to_bytes(4, "little") * 2
        asked = asyncio.create_task(other.stats())
        await h.queues[2].used()
        h.queues[2].add([b"\0\0" + (11).to_bytes(8, "little")])
        h.queues[2].kick()
        assert (await asked).swapped_in == 11
        asked = asyncio.create_task(other.stats())
        await asyncio.sleep(0)
        await h.reset()
        with pytest.raises(StateError, match="gone"):
            await asked
        assert other.actual == 0


async def test_pages_go_into_a_balloon_once_however_often_it_stops() -> None:
    async with Harness(BalloonDevice(64 * MIB)) as h:
        for page in range(100, 140):
            h.memory.write(page * PAGE, b"x" * PAGE)
            h.queues[0].add([page.to_bytes(4, "little")])
            h.queues[0].kick()
            await asyncio.sleep(0)
            await (pause(h) if page % 2 else move(h, BalloonDevice(64 * MIB)))
            assert len(await h.queues[0].used()) == 1
            assert h.memory.read(page * PAGE, PAGE) == bytes(PAGE)
        assert h.errors == []


# -- pmem ----------------------------------------------------------------------------------------------------------------


def pmem(path: Path, **options: Any) -> PmemDevice:
    return PmemDevice.from_config(PmemConfig(file=path, **options))


async def test_pmem_must_be_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "pmem"
    path.write_bytes(bytes(4 * MIB))
    first = pmem(path)
    first.placed(1 << 32)
    async with Harness(first) as h:
        h.queues[0].add([bytes(4)], [4])
        h.queues[0].kick()
        other = pmem(path)
        other.placed(1 << 32)
        await asyncio.sleep(0)
        await move(h, other)
        assert (await h.queues[0].used())[0].data == bytes(4)
        await other.sync()
        state = other.save()
        os.truncate(path, 2 * MIB)
    smaller = pmem(path)
    smaller.placed(1 << 32)
    await smaller.open()
    with pytest.raises(
        SnapshotError, match="it had 0x400000 bytes at 0x100000000, and has 0x200000 at 0x100000000: give it"
    ):
        smaller.load(state)
    await smaller.close()


async def test_pmem_that_goes_to_no_file_is_in_no_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "pmem"
    path.write_bytes(bytes(4 * MIB))
    device = pmem(path, discard_writes=True)
    await device.open()
    assert device.why_not_saved == "what the guest has written there goes to no file (discard_writes)"
    await device.close()


# -- IOMMU ---------------------------------------------------------------------------------------------------------------

ENDPOINTS = (8, 16, 24)
PAGES = st.integers(0, 12)
REQUEST = st.one_of(
    st.builds(Attach, st.integers(0, 3), st.sampled_from([*ENDPOINTS, 7]), st.integers(0, 1), st.just(bytes(4))),
    st.builds(Detach, st.integers(0, 3), st.sampled_from(ENDPOINTS), st.just(bytes(8))),
    st.builds(
        lambda domain, first, count, at, flags: Map(domain, first << 12, (first + count << 12) - 1, at << 12, flags),
        st.integers(0, 3),
        PAGES,
        st.integers(1, 3),
        PAGES,
        st.integers(0, 3),
    ),
    st.builds(
        lambda domain, first, count: Unmap(domain, first << 12, (first + count << 12) - 1, bytes(4)),
        st.integers(0, 3),
        PAGES,
        st.integers(1, 9),
    ),
)


def domains() -> Domains:
    made = Domains(input_end=(1 << 48) - 1, messages=MESSAGES)
    for endpoint in ENDPOINTS:
        made.add_endpoint(endpoint)
    return made


@settings(max_examples=150)
@given(before=st.lists(REQUEST, max_size=25), after=st.lists(REQUEST, max_size=15), bypass=st.booleans())
def test_domains_go_on_as_if_nothing_had_been(before: list[Any], after: list[Any], bypass: bool) -> None:
    old = domains()
    for request in before:
        old.handle(request)
    old.set_bypass(bypass)
    state = through_text(old.save())
    new = domains()
    effects = [effect for effect in new.load(state) if effect is not None]
    assert {e.endpoint: (e.domain, e.bypass) for e in effects if isinstance(e, Bound)} == {
        endpoint: (
            None if domain is None or old._domains[domain].bypass else domain,
            old._domains[domain].bypass if domain is not None else bypass,
        )
        for endpoint in ENDPOINTS
        if (domain := old.domain_of(endpoint)) is not None or not bypass
    }
    assert new.save() == state
    for request in after:
        assert new.handle(request) == old.handle(request)
    assert new.mapped == old.mapped


@settings(max_examples=150)
@given(st.data())
def test_damaged_domains_are_refused_or_could_have_been(data: st.DataObject) -> None:
    old = domains()
    for request in data.draw(st.lists(REQUEST, max_size=15)):
        old.handle(request)
    state = data.draw(damaged(through_text(old.save())))
    new = domains()
    before = new.save()
    try:
        list(new.load(state))
    except SnapshotError:
        assert new.save() == before
        return
    for request in data.draw(st.lists(REQUEST, max_size=10)):
        assert new.handle(request).status in Status


# -- the embedder's own --------------------------------------------------------------------------------------------------


class Remembers(PortDevice):
    base, size, name = 0xF4, 1, "remembers"
    value = 0

    async def save(self) -> dict[str, int]:
        await asyncio.sleep(0)
        return {"value": self.value}

    async def load(self, state: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        self.value = state["value"]


class Forgets(PortDevice):
    base, size, name = 0xF5, 1, "forgets"


async def test_ports_are_saved_by_their_own_methods() -> None:
    old, new = Remembers(), Remembers()
    old.value = 7
    await load_ports([new], through_text(await save_ports([old])))
    assert new.value == 7


async def test_a_port_that_cannot_be_saved_is_named() -> None:
    with pytest.raises(SnapshotError, match=r"forgets cannot be in a snapshot: it has no save\(\) and load\(\)"):
        await save_ports([Remembers(), Forgets()])
    with pytest.raises(SnapshotError, match="other devices at ports were saved than the 1"):
        await load_ports([Remembers()], [])
    with pytest.raises(SnapshotError, match=r"load\(\) failed: KeyError"):
        await load_ports([Remembers()], [{}])


async def test_what_a_save_gives_is_looked_at() -> None:
    class Wrong(Remembers):
        def save(self) -> Awaitable[dict[str, int]]:  # type: ignore[override]
            return 5  # type: ignore[return-value]

    with pytest.raises(SnapshotError, match=r"remembers: its save\(\)"):
        await save_ports([Wrong()])


def test_no_two_mappings_are_mixed_up() -> None:
    """Thousands, as a busy disk has."""
    rand = random.Random(3)
    old = domains()
    old.handle(Attach(1, 8, 0, bytes(4)))
    for page in rand.sample(range(1 << 20), 5000):
        old.handle(Map(1, page << 12, (page + 1 << 12) - 1, page << 13, 3))
    new = domains()
    assert list(new.load(through_text(old.save())))
    assert list(new.mappings(1)) == list(old.mappings(1))


# -- what was carried out is answered -----------------------------------------------------------------------------------------


async def test_blocks_that_are_given_back_while_it_stops_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same request again would be refused: these blocks are unplugged already."""
    driver = Driver(4 * BLOCK_SIZE)
    async with driver.harness as h:
        assert await driver.ask(Kind.PLUG, 0, 4) == (MemAnswer.ACK, 0)
        may_go = asyncio.Event()
        give_back = MemDevice._give_back

        async def slow(device: MemDevice, first: int, blocks: bytes) -> None:
            await finish(_waited(may_go))
            await give_back(device, first, blocks)

        monkeypatch.setattr(MemDevice, "_give_back", slow)
        h.queues[0].add([mem_request(Kind.UNPLUG, 0, 2)], [10])
        h.queues[0].kick()
        while driver.device.blocks.plugged != 2 * BLOCK_SIZE:  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0)
        stopping = asyncio.create_task(pause(h))
        await asyncio.sleep(0)
        may_go.set()
        await stopping
        assert (await h.queues[0].used())[0].data[:2] == bytes([MemAnswer.ACK, 0])


@pytest.mark.parametrize("refused", [False, True])
async def test_blocks_that_are_being_reached_while_it_stops_are_answered(refused: bool) -> None:
    """By devices of the host, which may refuse them: then they are not plugged, wherever it goes on."""
    driver = Driver(4 * BLOCK_SIZE)
    asked, may_go = asyncio.Event(), asyncio.Event()

    class Reach:
        async def blocks_came(self, region: MemoryRegion, first: int, count: int) -> None:
            assert (region.size, first, count) == (driver.device.blocks.size, 1, 2)
            asked.set()
            await may_go.wait()
            if refused:
                raise HostError("letting host devices reach it", errno.ENOMEM)

        async def blocks_gone(self, region: MemoryRegion, first: int, blocks: bytes | bytearray) -> None:
            raise AssertionError("none went")

    async with driver.harness as h:
        driver.device.reach = Reach()
        h.queues[0].add([mem_request(Kind.PLUG, 1, 2)], [10])
        h.queues[0].kick()
        await asked.wait()
        stopping = asyncio.create_task(pause(h))
        await asyncio.sleep(0)
        may_go.set()
        await stopping
        answer = MemAnswer.NACK if refused else MemAnswer.ACK
        assert (await h.queues[0].used())[0].data[:2] == bytes([answer, 0])
        assert driver.device.blocks.plugged == (0 if refused else 2 * BLOCK_SIZE)


async def _waited(event: asyncio.Event) -> None:
    await event.wait()


async def test_a_mapping_that_is_carried_out_while_the_iommu_stops_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    async with pair() as p:
        await p.echo.reset()
        assert await p.attach(1) == 0
        may_go = asyncio.Event()

        async def slow(endpoint: object) -> None:
            await may_go.wait()

        endpoint = p.device._endpoints[EP]
        monkeypatch.setattr(type(endpoint), "revalidate", slow)
        monkeypatch.setattr(type(endpoint), "uses", lambda *_: True)
        p.iommu.queues[0].add([struct.pack("<B3xIQQQI", 3, 1, 0, MIB - 1, 0, 3)], [4])
        p.iommu.queues[0].kick()
        while not list(p.device.domains.mappings(1)):  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0)
        stopping = asyncio.create_task(pause(p.iommu))
        await asyncio.sleep(0)
        may_go.set()
        await stopping
        assert (await p.iommu.queues[0].used())[0].data == bytes(4)


class _Kept(Echo):
    def save(self) -> dict[str, int]:
        return {}

    def load(self, state: dict[str, Any]) -> None:
        assert state == {}


async def test_a_device_behind_the_iommu_goes_on_through_its_mappings() -> None:
    async with pair() as p:
        await restart_in_domain(p)
        assert await p.echo.request(0, [b"before"], [6]) == b"before"
        other = IommuDevice(MESSAGES)
        other.power_on(p.echo.memory)
        translation = other.translation()
        other.add_endpoint(EP, translation, _Later(p.echo))
        p.echo.device = _Kept()  # the harness's own has no state to tell
        await move(p.iommu, other)
        assert other.domains.domain_of(EP) == 1
        p.echo.device_memory = translation
        await move(p.echo, _Kept())
        assert await p.echo.request(0, [b"after"], [5]) == b"after"
        p.device = other
        assert await p.unmap(1, 0, MIB) == 0
        assert isinstance(await p.echo.broken(), GuestFault), "its rings are mapped no more"


async def test_what_another_process_serves_says_why_it_is_in_no_snapshot() -> None:
    class Elsewhere:
        async def activate(self, *_: object) -> None: ...

        async def reset(self) -> None: ...

    memory = GuestMemory.create([(0, MIB)])
    function = VirtioPci(_Kept(), RecordingServices(memory), backend=Elsewhere())
    with pytest.raises(SnapshotError, match="echo cannot be in a snapshot: another process serves it"):
        await suspend_all([function])
    await unsuspend_all([function])
    await function.close()
    memory.close()
