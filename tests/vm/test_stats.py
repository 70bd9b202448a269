"""What a VM says of itself in numbers, and what a scraper gets."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest, start_http_server

from aiovmm import VM, ConsoleStats, DiskConfig, EventKind, RebootPolicy, VMState, VMStats
from aiovmm.devices.virtio.blk import BlkDevice, DiskImage, Latency
from aiovmm.errors import PeerError, StateError, UsageError
from aiovmm.memory import GuestMemory
from aiovmm.native import lib
from aiovmm.stats.prometheus import VMCollector
from aiovmm.testing import Harness
from tests.devices.virtio.blk_driver import read, write
from tests.vm.guest import config, counts_on, event, until

MIB = 1 << 20


async def test_bytes_of_consoles_and_what_it_takes_of_the_loop() -> None:
    async with VM(config("he")) as vm:
        await vm.start()
        await vm.serial.expect(rb"hello\n")
        vm.serial.write(b"abc")
        await vm.serial.expect(rb"abc")
        now = vm.stats()
        assert now.consoles["serial"] == ConsoleStats(bytes_out=9, bytes_in=3)
        assert now.consoles["console"] == ConsoleStats(0, 0)
        assert 0 < now.loop_seconds < now.uptime + 1


async def test_a_vms_life_in_numbers(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(MIB))
    vm = VM(config("x", 2, disks=(DiskConfig(path=tmp_path / "disk"),)))
    assert vm.stats().uptime == 0
    async with vm:
        before = vm.stats()
        assert (before.state, before.power_ons, before.uptime) == (VMState.CREATED, 0, 0)
        await vm.start()
        await counts_on(vm)
        await until(lambda: vm.stats().uptime > 0)  # an event loop may tell the same time for a while
        now = vm.stats()
        assert (now.vm, now.state, now.power_ons, now.memory) == ("guest", VMState.RUNNING, 1, 4 * MIB)
        assert now.uptime > 0
        assert len(now.vcpus) == 2
        assert now.vcpus[0].exits > 0
        assert set(now.devices) == {"disk0"}
        assert now.devices["disk0"].disk is not None
        assert len(now.devices["disk0"].queues) in (0, 1)
        await until(lambda: (loop := vm.stats().loop) is not None and loop.signs > 0)
        loop = vm.stats().loop
        assert loop is not None
        assert 0 <= loop.last <= loop.max
        await counts_on(vm, 1000)
        assert vm.stats().vcpus[0].exits > now.vcpus[0].exits
    after = vm.stats()
    assert after.state is VMState.STOPPED
    assert after.uptime == vm.stats().uptime > now.uptime
    assert after.vcpus == ()


async def test_reboots_are_counted() -> None:
    async with VM(config("r", on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        await event(vm, EventKind.REBOOTED, 2)
        assert vm.stats().power_ons >= 3


async def test_numbers_come_every_while_and_end_with_the_vm() -> None:
    seen: list[VMStats] = []
    async with VM(config("x")) as vm:
        await vm.start()
        async for now in vm.stats(every=0.01):
            seen.append(now)
            if len(seen) == 3:
                await vm.kill()
    assert [one.state for one in seen] == [VMState.RUNNING] * 3 + [VMState.STOPPED]
    with pytest.raises(UsageError):
        async for _ in vm.stats(every=float("nan")):
            pass


async def test_who_keeps_the_loop_is_named() -> None:
    async with VM(config("x")) as vm:
        await vm.start()
        await until(lambda: (loop := vm.stats().loop) is not None and loop.signs > 0)

        async def blocks() -> None:
            time.sleep(1.2)  # noqa: ASYNC251 - which is the fault that is looked for

        await asyncio.create_task(blocks(), name="the culprit")
        await until(lambda: (loop := vm.stats().loop) is not None and bool(loop.blamed))
        loop = vm.stats().loop
        assert loop is not None
        assert "task 'the culprit'" in loop.blamed
        await until(lambda: (loop := vm.stats().loop) is not None and loop.max > 0.5)


async def test_how_long_requests_take(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(MIB))
    disk = BlkDevice(DiskImage.open(tmp_path / "disk"))
    async with Harness(disk) as h:
        begin = time.perf_counter()
        for sector in range(20):
            await read(h, sector, 512)
        took = time.perf_counter() - begin
        await write(h, 0, bytes(512))
        latency = disk.counters.read_latency
        assert latency.count == 20
        assert 0 < latency.min <= latency.mean <= latency.max <= took
        assert latency.total <= took
        assert disk.counters.write_latency.count == 1
    assert disk.counters.read_latency == latency, "also after the queue has gone"


def test_latencies_add_up() -> None:
    some, others = Latency(2, 3.0, 1.0, 2.0), Latency(1, 0.5, 0.5, 0.5)
    assert some + others == others + some == Latency(3, 3.5, 0.5, 2.0)
    assert some + Latency() == Latency() + some == some
    assert Latency().mean == 0


async def test_what_is_resident_is_what_was_touched() -> None:
    async with VM(config("x")) as vm:
        before = await vm.memory.resident()
        vm.machine.memory.write(2 * MIB, bytes([1]) * MIB)
        assert await vm.memory.resident() - before == MIB
        before = await vm.memory.resident()
        assert await vm.memory.reclaim() == before - await vm.memory.resident()
        await vm.start()
        await counts_on(vm)
    with pytest.raises(StateError):
        await vm.memory.resident()


def test_resident_counts_pages_of_any_range() -> None:
    memory = GuestMemory.create([(0, 8 * MIB)], shared=False, thp=False)
    (region,) = memory.regions
    for page in (0, 511, 512, 1023, 2047):
        memory.write(page * 4096, b"x")
    assert lib.avmm_mem_resident(region.host, region.size) == 5 * 4096
    assert lib.avmm_mem_resident(region.host, 512 * 4096) == 2 * 4096
    memory.close()


async def test_a_scraper_gets_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(MIB))
    async with VM(config("x", disks=(DiskConfig(path=tmp_path / "disk"),))) as vm, VM(config("o", name="two")) as two:
        await vm.start()
        await counts_on(vm)
        await two.start()
        await two.wait()
        registry = CollectorRegistry()
        collector = VMCollector(lambda: [vm, two])
        await asyncio.to_thread(registry.register, collector)
        server, thread = start_http_server(0, "127.0.0.1", registry)
        try:
            text = await scrape(server.server_port)
            assert re.search(r'^aiovmm_uptime_seconds\{state="running",vm="guest"\} [\d.e-]+$', text, re.M)
            assert 'aiovmm_uptime_seconds{state="stopped",vm="two"}' in text
            assert re.search(r'^aiovmm_exits_total\{kind="exits",vcpu="0",vm="guest"\} [1-9]', text, re.M)
            assert 'aiovmm_disk_total{device="disk0",kind="reads",vm="guest"} 0.0' in text
            assert 'aiovmm_memory_bytes{vm="two"} 4.194304e+06' in text
            first = exits(text)
            await counts_on(vm, 1000)
            assert exits(await scrape(server.server_port)) > first
        finally:
            await asyncio.to_thread(server.shutdown)
            server.server_close()
            await asyncio.to_thread(thread.join)


async def test_a_registry_on_the_loop_neither_waits_for_itself_nor_holds_it_up() -> None:
    """Which asks for the names, as `prometheus_client.REGISTRY.register(VMCollector(...))` in a program does."""
    async with VM(config("x")) as vm:
        registry = CollectorRegistry(auto_describe=True)
        registry.register(collector := VMCollector(lambda: [vm]))
        with pytest.raises(ValueError, match="Duplicated timeseries"):
            registry.register(VMCollector(lambda: [vm]))
        with pytest.raises(StateError, match="to_thread"):
            generate_latest(registry)
        metrics = await asyncio.to_thread(lambda: list(collector.collect()))
        assert [metric.name for metric in collector.describe()] == [metric.name for metric in metrics]


async def test_vms_of_one_name_are_told_apart_and_keep_their_labels() -> None:
    async with VM(config("x")) as one, VM(config("x")) as two, VM(config("x", name="guest#2")) as three:
        vms = [one, three, two]
        collector = VMCollector(lambda: vms)
        assert await labels(collector) == ["guest", "guest#2", "guest#3"]
        vms = [two, three]
        assert await labels(collector) == ["guest#3", "guest#2"]


async def labels(collector: VMCollector) -> list[str]:
    return [labels["vm"] for labels, _ in (await scraped(collector))["aiovmm_memory_bytes"]]


async def scraped(collector: VMCollector) -> dict[str, list[tuple[dict[str, str], float]]]:
    """What there is of each name: labels and values."""
    metrics = await asyncio.to_thread(lambda: list(collector.collect()))
    return {metric.name: [(sample.labels, sample.value) for sample in metric.samples] for metric in metrics}


async def test_resident_memory_is_scraped_where_it_is_asked_for() -> None:
    async with VM(config("x")) as vm, VM(config("x", name="two")) as two:
        vm.machine.memory.write(2 * MIB, bytes([1]) * MIB)
        await two.aclose()
        samples = await scraped(VMCollector(lambda: [vm, two], memory=True))
        assert samples["aiovmm_memory_resident_bytes"] == [({"vm": "guest"}, await vm.memory.resident())]
        assert samples["aiovmm_memory_own_bytes"] == [({"vm": "guest"}, await vm.memory.own())]
        assert (await scraped(VMCollector(lambda: [vm])))["aiovmm_memory_resident_bytes"] == []
        assert await vm.memory.both() == (await vm.memory.resident(), await vm.memory.own())


async def test_one_whose_worker_goes_while_its_pages_are_counted_has_the_rest_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def gone(_ram: object) -> tuple[int, int]:
        raise PeerError("the worker is gone")

    async with VM(config("x")) as vm:
        monkeypatch.setattr(type(vm.memory), "both", gone)
        samples = await scraped(VMCollector(lambda: [vm], memory=True))
        assert samples["aiovmm_memory_resident_bytes"] == []
        assert await labels(VMCollector(lambda: [vm], memory=True)) == ["guest"]


async def test_a_fault_of_ours_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scrape that fails is looked into; numbers that are not there are not."""

    def wrong(*_: object) -> VMStats:
        raise KeyError("net0")

    async with VM(config("x")) as vm:
        monkeypatch.setattr("aiovmm.stats.gather", wrong)
        with pytest.raises(KeyError, match="net0"):
            await scraped(VMCollector(lambda: [vm]))


async def test_one_that_does_not_answer_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Mute(VM):
        def stats(self, *, every: float | None = None) -> Any:
            return self.never()

        async def never(self) -> AsyncIterator[VMStats]:
            await asyncio.Event().wait()
            yield VM.stats(self)

    monkeypatch.setattr("aiovmm.stats.prometheus._LATE", 0.2)
    async with VM(config("x")) as vm, Mute(config("x", name="mute")) as mute:
        collector = VMCollector(lambda: [mute, vm])
        assert await labels(collector) == ["guest"]
        await until(lambda: not collector._late)
        assert "mute: left out of a scrape: it tells no numbers: error='no answer within 0.2 s'" in caplog.text


async def test_one_that_refuses_its_numbers_is_said_to_be_left_out_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a worker's whose numbers are more than a frame: what is not there looks like a guest that is not."""

    def refuse(*_: object) -> VMStats:
        raise UsageError("too much between a pool and a worker")

    async with VM(config("x")) as vm:
        collector = VMCollector(lambda: [vm])
        assert await labels(collector) == ["guest"]
        assert not caplog.records
        monkeypatch.setattr("aiovmm.stats.gather", refuse)
        assert await labels(collector) == await labels(collector) == []
    told = [record.getMessage() for record in caplog.records]
    assert told == ["guest: left out of a scrape: it tells no numbers: error='too much between a pool and a worker'"]


def exits(text: str) -> float:
    match = re.search(r'aiovmm_exits_total\{kind="exits",vcpu="0",vm="guest"\} (\S+)', text)
    assert match is not None
    return float(match[1])


async def scrape(port: int) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    assert " 200 OK" in text.splitlines()[0]
    return text
