"""What of a guest is asked of it where it is: the same in this process and in a worker."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aiovmm import (
    VM,
    AgentLost,
    BootTimeout,
    ConsoleStats,
    CpusConfig,
    DiskConfig,
    ExitReason,
    HotplugTimeout,
    NetConfig,
    Pool,
    RngConfig,
    VMState,
    VMStats,
    VsockConfig,
)
from aiovmm.errors import ConfigError, HostError, StateError, UsageError
from aiovmm.lifecycle import EventKind
from aiovmm.pool.workers import process, told_config
from aiovmm.pool.workers.frames import Bound
from aiovmm.pool.workers.plain import WorkerLost
from aiovmm.pool.workers.remote_vm import RemoteVM
from aiovmm.stats.prometheus import VMCollector
from tests.agent.conftest import Guest, guest  # noqa: F401 - a fixture
from tests.limits import HANGS
from tests.vm.guest import event, until
from tests.vm.remains import Remains
from tests.vm.test_pool import guests, here_and_there, lives
from tests.vm.test_pool_workers import FAKE, children, pid_of

JOINED = """
import asyncio, socket
from aiovmm.devices.virtio.vsock.streams import Vsock
from aiovmm.runtime.stream_socket import join_socket

tries = 0

class Half(asyncio.Protocol):
    other = None
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.other.transport.write(data)
    def connection_lost(self, exc):
        self.other.transport.close()

async def join(self, port, sock):
    global tries
    tries += 1
    if tries < 4:
        sock.close()
        raise ConnectionRefusedError("nobody listens yet")
    agent = socket.socket(socket.AF_UNIX)
    agent.connect(PATH)
    one, other = Half(), Half()
    one.other, other.other = other, one
    await join_socket(sock, lambda: one)
    await join_socket(agent, lambda: other)

Vsock.join = join
main(int"""
"""In a worker: what its device would be, for a guest whose kernel hands its side to a real agent; at first nobody listens."""


@here_and_there
async def test_numbers_come_at_once_then_regularly_and_end_with_the_guest(workers: int, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    with_disk = guests("he").with_changes({"disks": (DiskConfig(path=tmp_path / "disk"),)})
    async with Pool(with_disk, max=1, workers=workers) as pool, pool.acquire() as vm:
        await vm.serial.expect(rb"hello\n", 20)
        vm.serial.write(b"abc")
        await vm.serial.expect(rb"abc", 20)
        seen = []
        async for now in vm.stats(every=0.01):
            assert isinstance(now, VMStats)
            seen.append(now)
            if len(seen) == 2:
                await vm.kill()
        first, last = seen[0], seen[-1]
        assert (first.vm, first.state, first.memory, first.power_ons) == ("g-0", VMState.RUNNING, 4 << 20, 1)
        assert first.consoles["serial"] == ConsoleStats(bytes_out=9, bytes_in=3)
        assert first.vcpus[0].exits > 0
        assert first.devices["disk0"].disk is not None
        assert last.state is VMState.STOPPED
        assert last.uptime >= first.uptime


@here_and_there
async def test_memory_is_counted_where_it_is(workers: int) -> None:
    async with Pool(guests(), max=1, workers=workers) as pool, pool.acquire() as vm:
        await lives(vm)
        resident = await vm.memory.resident()
        assert 0 < await vm.memory.own() <= resident <= 4 << 20
        assert await vm.memory.reclaim() >= 0


@here_and_there
async def test_devices_come_and_go(workers: int, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    disk = DiskConfig(path=tmp_path / "disk")
    async with Pool(guests(), max=1, workers=workers) as pool, pool.acquire() as vm:
        assert await vm.add(disk, timeout=0) == "disk0"
        assert vm.config.disks[0].id == "disk0"
        with pytest.raises(HotplugTimeout, match=r"the guest has not looked at it within 0\.05 s"):
            await vm.add(VsockConfig(), timeout=0.05)
        with pytest.raises(HostError, match="none"):
            await vm.add(DiskConfig(path=tmp_path / "none"), timeout=0)
        with pytest.raises(ConfigError, match="disk0"):
            await vm.add(DiskConfig(path=tmp_path / "disk", id="disk0"), timeout=0)
        await vm.remove("disk0", timeout=0, force=True)
        assert vm.config.disks == ()
        with pytest.raises(KeyError, match="disk0"):
            await vm.remove("disk0")
        await lives(vm)


async def test_a_device_that_the_guest_lets_go_of_later_is_not_in_its_configuration(tmp_path: Path) -> None:
    """As after a remove() that was not waited for: the worker says so when it happens, and is asked by nobody."""
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    async with Pool(guests(), max=1, workers=1) as pool, pool.acquire() as vm:
        assert isinstance(vm, RemoteVM)
        await vm.add(DiskConfig(path=tmp_path / "disk"), timeout=0)
        events = vm.events()
        await vm._worker.ask("remove", vm._number, device="disk0", timeout=[0], force=True)
        async with asyncio.timeout(60):
            async for happened in events:
                if happened.kind is EventKind.DEVICE_REMOVED:
                    break
        assert vm.config.disks == ()


@here_and_there
async def test_a_device_that_the_guest_did_not_look_at_is_not_in_its_configuration(
    workers: int, tmp_path: Path
) -> None:
    """Though another came meanwhile, of which was told what there was then."""
    paths = tmp_path / "a", tmp_path / "b"
    for path in paths:
        path.write_bytes(bytes(4096))
    async with Pool(guests(), max=1, workers=workers) as pool, pool.acquire() as vm:
        late = asyncio.ensure_future(vm.add(DiskConfig(path=paths[0]), timeout=0.5))
        await asyncio.sleep(0)
        await vm.add(DiskConfig(path=paths[1]), timeout=0)
        with pytest.raises(HotplugTimeout):
            await late
        assert [disk.path for disk in vm.config.disks] == [paths[1]]


CANCELLED = """
import time
send({'op': 'done', 'id': made['id'], 'value': {'serial': '', 'console': ''}})
asked = hear()
assert hear()['op'] == 'cancel'
config = {**made['config'], 'disks': [{**asked['device'], 'id': 'disk0'}]}
send({'op': 'done', 'id': asked['id'], 'value': {'id': 'disk0', 'config': config}})
time.sleep(0.2)
event = {'kind': 'device-added', 'detail': '', 'device': 'disk0', 'error': None, 'config': config}
send({'op': 'event', 'vm': vm, **event})
while True:
    send({'op': 'done', 'id': hear()['id'], 'value': None})
"""


async def test_who_gives_up_an_add_that_was_just_done_ends_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event tells of a device that nobody waits for any more, and that is there."""
    monkeypatch.setattr(process, "_PROGRAM", FAKE + CANCELLED)
    async with Pool(guests(), max=1, workers=1) as pool, pool.acquire() as vm:
        adding = asyncio.create_task(vm.add(DiskConfig(path=Path("/dev/null")), timeout=0))
        await asyncio.sleep(0)
        adding.cancel()
        await asyncio.wait([adding])
        assert adding.cancelled()
        await event(vm, EventKind.DEVICE_ADDED)
        assert vm.status is None
        assert [disk.id for disk in vm.config.disks] == ["disk0"]


PAUSED = """
send({'op': 'done', 'id': made['id'], 'value': {'serial': '', 'console': ''}})
asked = hear()
assert hear()['op'] == 'cancel'
send({'op': 'done', 'id': asked['id'], 'value': None})
while True:
    asked = hear()
    if asked['op'] == 'resume':
        send({'op': 'event', 'vm': vm, 'kind': 'resumed', 'detail': '', 'device': None, 'error': None, 'config': None})
    send({'op': 'done', 'id': asked['id'], 'value': None})
"""


async def test_a_pause_that_is_given_up_as_it_is_done_lets_the_guest_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_PROGRAM", FAKE + PAUSED)
    async with Pool(guests(), max=1, workers=1) as pool, pool.acquire() as vm:
        pausing = asyncio.create_task(vm.pause())
        await asyncio.sleep(0)
        pausing.cancel()
        await asyncio.wait([pausing])
        assert pausing.cancelled()
        assert vm.state is VMState.RUNNING
        await event(vm, EventKind.RESUMED)


@here_and_there
async def test_processors_are_asked_for(workers: int) -> None:
    two = guests().with_changes({"cpus": CpusConfig(1, max=2)})
    async with Pool(two, max=1, workers=workers) as pool, pool.acquire() as vm:
        with pytest.raises(HotplugTimeout):
            await vm.resize(cpus=2, timeout=0.05)
        await lives(vm)


@here_and_there
@pytest.mark.usefixtures("writes_are_known")
async def test_an_increment_goes_on_elsewhere(workers: int, tmp_path: Path) -> None:
    async with Pool(guests(), max=1, workers=workers) as pool, pool.acquire() as vm:
        await vm.snapshot(tmp_path / "whole", track=True)
        await lives(vm)
        taken = await vm.snapshot(tmp_path / "there", base=tmp_path / "whole")
        assert taken.base == tmp_path / "whole"
    async with VM.restore(tmp_path / "there") as again:
        await again.resume()
        await lives(again)


@here_and_there
async def test_a_snapshot_is_whole_and_goes_on_elsewhere(workers: int, tmp_path: Path) -> None:
    async with Pool(guests(), max=1, workers=workers) as pool, pool.acquire() as vm:
        await lives(vm)
        taken = await vm.snapshot(tmp_path / "there")
        assert (taken.path, taken.pages > 0, taken.standstill > 0) == (tmp_path / "there", True, True)
        await lives(vm)
        with pytest.raises(HostError, match="none"):
            await vm.snapshot(tmp_path / "none" / "there")
        await vm.pause()
        await vm.snapshot(tmp_path / "there")
        assert vm.state is VMState.PAUSED
        await vm.resume()
        await vm.kill()
        with pytest.raises(StateError):
            await vm.snapshot(tmp_path / "there")
    async with VM.restore(tmp_path / "there") as again:
        await again.resume()
        await lives(again)


@here_and_there
async def test_an_agent_that_is_not_there(workers: int) -> None:
    with_vsock = guests().with_changes({"vsock": VsockConfig()})
    async with Pool(with_vsock, max=1, workers=workers) as pool, pool.acquire() as vm:
        with pytest.raises(BootTimeout) as info:
            await vm.agent.ready(0.1)
        assert info.value.stage == "driver"
        waiting = asyncio.create_task(vm.run(["true"]))
        await asyncio.sleep(0)
        await vm.kill("enough")
        with pytest.raises(AgentLost, match="enough"):
            await waiting
    async with Pool(guests(), max=1, workers=workers) as pool, pool.acquire() as vm:
        with pytest.raises(StateError, match="no vsock device"):
            await vm.run(["true"])


def joined_to(agent: Guest, patch: pytest.MonkeyPatch) -> None:
    """Workers' guests have this agent."""
    patch.setattr(
        process, "_PROGRAM", process._PROGRAM.replace("main(int", JOINED, 1).replace("PATH", repr(str(agent.path)))
    )


async def test_the_agent_of_a_guest_in_a_worker(
    guest: Guest,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    joined_to(guest, monkeypatch)
    with_vsock = guests().with_changes({"vsock": VsockConfig()})
    remains, before = await Remains.once_loop_has_streams(), children()
    async with Pool(with_vsock, max=1, workers=1) as pool, pool.acquire() as vm:
        await vm.agent.ready(20)
        data = bytes(range(256)) * 4000
        assert (await vm.run(["cat"], input=data)).stdout == data
        assert (await vm.run(["sh", "-c", "exit 5"])).returncode == 5
        process_ = await vm.create_process("sh", "-c", "read x; echo $x; cat")
        assert process_.stdin is not None
        assert process_.stdout is not None
        process_.stdin.write(b"typed\n")
        assert await process_.stdout.readline() == b"typed\n"
        process_.stdin.close()
        assert await process_.wait() == 0
        await vm.files.write(str(tmp_path / "file"), b"content")
        assert await vm.files.read(str(tmp_path / "file")) == b"content"
        port = await vm.forward(str(guest.path))  # whatever listens there: the agent itself
        assert isinstance(port, int)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert b"aiovmmAG" in await asyncio.wait_for(reader.read(64), HANGS)
        writer.close()
        running = asyncio.create_task(vm.run(["sleep", "60"]))
        await guest.busy()
        os.kill(pid_of(vm), 9)
        with pytest.raises(AgentLost, match="was killed by signal 9") as info:
            await running
        assert info.value.status is not None
        assert info.value.status.reason is ExitReason.ERROR
    assert children() == before
    await remains.check()


async def test_waiting_for_an_agent_is_cancelled_without_a_trace() -> None:
    with_vsock = guests().with_changes({"vsock": VsockConfig()})
    async with Pool(with_vsock, max=1, workers=1) as pool, pool.acquire() as vm:
        await lives(vm)
        there = descriptors(pid_of(vm))
        remains = await Remains.once_loop_has_streams()
        for _ in range(20):
            waiting = asyncio.create_task(vm.agent.ready(None))
            await asyncio.sleep(0.002)
            waiting.cancel()
            await asyncio.wait([waiting])
            assert waiting.cancelled()
        await until(lambda: descriptors(pid_of(vm)) <= there)
        await lives(vm)
        await remains.check()


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


async def test_a_worker_without_a_descriptor_for_an_agent_keeps_its_guests() -> None:
    with_vsock = guests().with_changes({"vsock": VsockConfig()})
    async with Pool(with_vsock, max=2, workers=1) as pool, pool.acquire() as vm, pool.acquire() as other:
        limits = resource.prlimit(
            pid_of(vm), resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        )
        with pytest.raises(HostError, match="raise the limit of open files") as info:
            await vm.agent.ready(20)
        assert info.value.errno == errno.EMFILE
        await lives(other)
        resource.prlimit(pid_of(vm), resource.RLIMIT_NOFILE, limits)
        with pytest.raises(BootTimeout):  # the next one finds its own
            await vm.agent.ready(0.1)
        await lives(vm)


async def test_what_is_of_this_process_cannot_be_added() -> None:
    async with Pool(guests(), max=1, workers=1) as pool, pool.acquire() as vm:
        with pytest.raises(ConfigError, match="does not have this one's descriptors"):
            await vm.add(NetConfig(fd=(7,)))
        with pytest.raises(UsageError, match="configuration of a device"):
            await vm.add("disk")  # type: ignore[arg-type]


ANSWERS: dict[str, tuple[str, Callable[[VM], Awaitable[Any]]]] = {
    "numbers": ("{'stats': {'vm': 7}}", lambda vm: anext(vm.stats(every=1))),
    "no numbers": ("{}", lambda vm: anext(vm.stats(every=1))),
    "bytes": ("{'bytes': -1}", lambda vm: vm.memory.resident()),
    "a snapshot": ("{'pages': '7', 'microseconds': 1}", lambda vm: vm.snapshot("/nowhere")),
    "a configuration": ("{'config': {'cpus': 7}}", lambda vm: vm.remove("disk0")),
    "a device": ("{'config': {}}", lambda vm: vm.add(DiskConfig(path=Path("/dev/null")))),
}


@pytest.mark.parametrize("what", list(ANSWERS))
async def test_an_answer_that_is_none_ends_the_worker(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, ask = ANSWERS[what]
    says = f"""
places = {{'serial': '', 'console': ''}}
send({{'op': 'done', 'id': made['id'], 'value': places}})
send({{'op': 'done', 'id': hear()['id'], 'value': {answer}}})
sock.recv(1)
"""
    monkeypatch.setattr(process, "_PROGRAM", FAKE + says)
    async with Pool(guests(), max=1, workers=1) as pool, pool.acquire() as vm:
        with suppress(WorkerLost, StopAsyncIteration):  # numbers end with their guest
            await ask(vm)
        status = await vm.wait()
        assert status.reason is ExitReason.ERROR
        assert "broke the protocol" in status.detail


async def test_what_is_asked_of_a_guest_that_was_given_back_harms_no_other() -> None:
    async with Pool(guests(), max=2, workers=1) as pool, pool.acquire() as other:
        async with pool.acquire() as vm:
            pass
        for ask in (
            lambda: vm.memory.resident(),
            lambda: vm.add(RngConfig()),
            lambda: vm.remove("disk0"),
            lambda: vm.resize(cpus=2),
            lambda: vm.snapshot("s"),
            lambda: vm.pause(),
        ):
            with pytest.raises(StateError, match=r"its program closed it|is stopped"):
                await ask()
        assert [numbers async for numbers in vm.stats(every=0.01)] == []
        assert isinstance(vm, RemoteVM)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.settimeout(20)
            for op, passing_on, fields in ("memory", None, {"what": "own"}), ("dial", theirs, {"port": 1}):
                with pytest.raises(StateError, match="the guest has left"):  # it was on its way when the guest left
                    await vm._worker.ask(op, vm._number, passing_on, **fields)
            theirs.close()
            assert ours.recv(1) == b"", "nobody has the other half"
        await lives(other)


async def test_what_cannot_be_had_says_what_can() -> None:
    async with Pool(guests(), max=1, workers=1) as pool, pool.acquire() as vm:
        with pytest.raises(StateError, match=r"take a snapshot\(\), and VM.restore\(\) it"):
            await vm.freeze()
        with pytest.raises(StateError, match=r"async for now in vm.stats\(every="):
            vm.stats()
        with pytest.raises(StateError, match=r"stats\(every=\), memory, config"):
            _ = vm.machine


async def test_a_scraper_has_the_numbers_of_both_kinds() -> None:
    async with Pool(guests(), max=1, workers=1) as pool, pool.acquire() as vm, VM(guests()) as other:
        collector = VMCollector(lambda: [vm, other])
        found = await asyncio.get_running_loop().run_in_executor(None, lambda: list(collector.collect()))
        names = {sample.labels["vm"] for metric in found for sample in metric.samples if "vm" in sample.labels}
        assert names == {"g", "g-0"}
        await other.start()
        await until(lambda: other.stats().loop is not None)
        metrics = {metric.name: metric for metric in await asyncio.to_thread(lambda: list(collector.collect()))}
        loops = {sample.labels["process"] for sample in metrics["aiovmm_loop_lag_seconds"].samples}
        assert loops == {str(os.getpid()), str(pid_of(vm))}, "each has one of its own"


async def test_no_device_is_added_that_its_worker_could_not_tell_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be silent of the guest's end, too, which would seem to run for ever."""
    (tmp_path / "disk").write_bytes(bytes(512))
    disks = tuple(DiskConfig(path=tmp_path / "disk", readonly=True, pci_segment=n // 30) for n in range(600))
    many = replace(guests(), platform=replace(guests().platform, num_pci_segments=20), disks=disks)
    with pytest.raises(ConfigError, match="600 are more than a worker process can tell of"):
        Pool(many, workers=1)
    async with Pool(replace(many, disks=disks[:1]), max=1, workers=1) as pool, pool.acquire() as vm:
        monkeypatch.setattr(told_config, "FROM_WORKER", Bound(12 << 10, 1 << 10))
        with pytest.raises(ConfigError, match="2 are more than a worker process can tell of"):
            await vm.add(DiskConfig(path=tmp_path / ("x" * 4000), readonly=True))
        await lives(vm)


REFUSALS = ["{'kind': 'KeyError', 'with': ['x']}", "{'kind': 'HostError', 'with': ['no', 5, '', None]}"]


def tells(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Of its guest, whatever it is asked."""
    says = f"""
send({{'op': 'done', 'id': made['id'], 'value': {{'serial': '', 'console': ''}}}})
while True:
    send({{'id': hear()['id'], {what}}})
"""
    monkeypatch.setattr(process, "_PROGRAM", FAKE + says)


@pytest.mark.parametrize("value", ["{'bytes': 4096, 'own': None}", "{'bytes': None, 'own': None}", "None"])
async def test_a_worker_that_counts_pages_by_halves_breaks_the_protocol(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tells(monkeypatch, f"'op': 'done', 'value': {value}")
    async with Pool(guests(), max=1, workers=1) as pool, pool.acquire() as vm:
        with pytest.raises(WorkerLost, match="broke the protocol"):
            await vm.memory.both()


@pytest.mark.parametrize("error", [*REFUSALS, "{'kind': 'StateError', 'with': ['x']}"])
async def test_a_worker_that_tells_no_numbers_hides_nobody_elses(error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a guest's by now."""
    tells(monkeypatch, f"'op': 'failed', 'error': {error}")
    async with Pool(guests(), max=1, workers=1) as pool, pool.acquire() as vm, VM(guests()) as other:
        collector = VMCollector(lambda: [vm, other], memory=True)
        metrics = await asyncio.to_thread(lambda: list(collector.collect()))
        names = {sample.labels["vm"] for metric in metrics for sample in metric.samples if "vm" in sample.labels}
        assert names == {"g"}
        vm._worker.give_up("is of no use")  # type: ignore[attr-defined]
