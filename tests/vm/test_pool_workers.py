"""A pool over worker processes: who is where, what becomes of guests whose worker dies, and that nothing stays."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from aiovmm import (
    VM,
    ConsoleConfig,
    ConsoleMode,
    EventKind,
    ExitReason,
    LimitsConfig,
    NetConfig,
    PayloadConfig,
    Pool,
    PoolEventKind,
    RngConfig,
    VMState,
)
from aiovmm.errors import ConfigError, ConsoleEnded, HostError, ImageError, StateError, UsageError
from aiovmm.pool.workers import process, remote_input
from aiovmm.pool.workers.plain import WorkerLost
from aiovmm.pool.workers.remote_vm import RemoteVM
from tests.limits import HANGS
from tests.vm.guest import event, until
from tests.vm.remains import Remains
from tests.vm.test_pool import guests, lives

ROOT = Path(__file__).parent.parent.parent


def remote(vm: VM) -> RemoteVM:
    assert isinstance(vm, RemoteVM)
    return vm


def pid_of(vm: VM) -> int:
    return remote(vm)._worker.pid


def children() -> set[int]:
    found = [task.read_text() for task in Path("/proc/self/task").glob("*/children")]
    return {int(pid) for text in found for pid in text.split()}


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_guests_are_spread_evenly() -> None:
    async with Pool(guests(), warm=6, max=6, workers=3) as pool:
        await pool.warmed(60)
        places = sorted(remote(member.vm).worker for member in pool._spares if member.vm is not None)
        assert places == [0, 0, 1, 1, 2, 2]


async def test_what_a_guest_says_and_is_told() -> None:
    async with Pool(guests("hl"), max=1, workers=1) as pool, pool.acquire() as vm:
        assert (vm.name, vm.state, vm.status) == ("g-0", VMState.RUNNING, None)
        assert vm.config == guests("hl").with_changes({"name": "g-0"})
        await vm.serial.expect(rb"hello\n", 20)
        await lives(vm)
        await vm.pause()
        await vm.pause()
        assert vm.state is VMState.PAUSED
        with pytest.raises(StateError, match="is paused: resume"):
            await vm.start()
        await vm.resume()
        await vm.start()
        await lives(vm)
        vm.set_limits(exits=5000)
        assert vm.limits == LimitsConfig(exits=5000)
        status = await vm.kill("enough")
        assert (status.reason, status.detail) == (ExitReason.KILLED, "enough")
        assert await vm.wait() is status
        assert await vm.kill() is status
        with pytest.raises(StateError, match="stopped"):
            await vm.pause()
        kinds = [seen.kind async for seen in vm.events(from_start=True)]
        assert kinds == [EventKind.STARTED, EventKind.PAUSED, EventKind.RESUMED, EventKind.STOPPED]


async def test_more_than_the_window_goes_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_input, "WINDOW", 1024)
    async with Pool(guests("e"), max=1, workers=1) as pool, pool.acquire() as vm:
        data = random.randbytes(8 * 1024).replace(b"q", b"Q")
        sending = asyncio.create_task(vm.serial.send(data))
        assert await vm.serial.readexactly(len(data)) == data
        await sending
        assert vm.serial.bytes_in == len(data)


@pytest.mark.parametrize("size", [(0, 0), (80, 0), (65535, 65535)], ids=str)
async def test_a_terminal_of_any_size_is_none_that_ends_the_worker(size: tuple[int, int]) -> None:
    """One that nobody has told its size has none."""
    async with Pool(guests(), max=2, workers=1) as pool, pool.acquire() as vm, pool.acquire() as other:
        for console in (vm.serial, vm.console):
            console.resize(*size)
        await lives(vm)
        await lives(other)


async def test_the_power_button_and_stop() -> None:
    async with Pool(guests("bo"), max=2, workers=1) as pool:
        async with pool.acquire() as vm:
            vm.shutdown()
            assert (await vm.wait()).reason is ExitReason.SHUTDOWN
        async with pool.acquire() as vm:
            assert (await vm.stop()).reason is ExitReason.SHUTDOWN
            await event(vm, EventKind.POWER_BUTTON)


async def test_a_worker_that_is_killed_takes_its_guests_with_it_and_nobody_elses() -> None:
    remains, before = await Remains.once_loop_has_streams(), children()
    async with Pool(guests(), warm=2, max=8, workers=2) as pool:
        await pool.warmed(60)
        events = pool.events()
        async with pool.acquire() as one, pool.acquire() as other:
            assert remote(one).worker != remote(other).worker
            waiting = asyncio.create_task(one.serial.expect(b"never"))
            os.kill(pid_of(one), signal.SIGKILL)
            status = await asyncio.wait_for(one.wait(), HANGS)
            assert status.reason is ExitReason.ERROR
            assert "was killed by signal 9" in status.detail
            assert isinstance(status.error, WorkerLost)
            with pytest.raises(EOFError):
                await waiting
            with pytest.raises(StateError):
                await one.pause()
            await lives(other)
            async for seen in events:
                if seen.kind is PoolEventKind.WORKER_DIED:
                    assert (seen.worker, seen.vm) == (remote(one).worker, "")
                    break
            await pool.warmed(20)  # whichever of them died
            async with pool.acquire() as third:
                await lives(third)
            await lives(other)
    assert children() == before
    await remains.check()


async def test_spares_of_a_dead_worker_are_held_back_once() -> None:
    async with Pool(guests(), warm=12, max=24, workers=2) as pool:
        await pool.warmed(60)
        spare = pool._spares[0].vm
        assert spare is not None
        os.kill(pid_of(spare), signal.SIGKILL)
        await until(lambda: pool.stats().died == 6)
        assert pool._in_a_row == 1
        await pool.warmed(60)


async def test_whoever_waits_has_another_if_the_worker_dies_meanwhile() -> None:
    async with Pool(guests(), max=3, workers=1) as pool, pool.acquire() as vm:
        user = asyncio.create_task(_use_one_that_lives(pool))
        await until(lambda: pool.stats().starting == 1)
        os.kill(pid_of(vm), signal.SIGKILL)
        await asyncio.wait_for(user, 60)


async def test_a_worker_of_whose_end_somebody_else_was_told() -> None:
    """A program that reaps whatever child ends."""
    async with asyncio.timeout(60), Pool(guests(), max=1, workers=1) as pool, pool.acquire() as vm:
        os.kill(pid_of(vm), signal.SIGKILL)
        os.waitpid(pid_of(vm), 0)  # noqa: ASYNC222 - it ends at once
        await until(lambda: remote(vm)._worker.lost is not None)


async def _use_one_that_lives(pool: Pool) -> None:
    """The first may have been ready, and handed out, a moment before its worker was killed."""
    try:
        await _use(pool)
    except ConsoleEnded:
        await _use(pool)


async def _use(pool: Pool) -> None:
    async with pool.acquire() as vm:
        await lives(vm)


async def test_cancelled_at_any_moment_it_leaves_nothing() -> None:
    remains, before = await Remains.once_loop_has_streams(), children()
    chance = random.Random(7)
    for round_ in range(6):
        async with Pool(guests(), warm=1, max=4, workers=2) as pool:
            users = [asyncio.create_task(_use(pool)) for _ in range(6)]
            for user in users:
                await asyncio.sleep(chance.random() * 0.08 * round_ / 5)
                user.cancel()
            await asyncio.wait(users)
            await _use(pool)
    assert children() == before
    await remains.check()


@pytest.mark.parametrize("how", ["killed", "its task is cancelled"])
def test_workers_end_with_the_program(how: str) -> None:
    program = """
import asyncio, signal, sys
from aiovmm import Pool
from tests.vm.guest import config

signal.signal(signal.SIGINT, signal.default_int_handler) # what runs in a shell's background ignores it

async def main():
    async with Pool(config("l", name="g"), warm=2, max=2, workers=2) as pool:
        await pool.warmed(60)
        print(*(member.vm._worker.pid for member in pool._spares), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        assert all(map(is_there, workers))
        parent.send_signal(signal.SIGKILL if how == "killed" else signal.SIGINT)
        parent.wait(60)
    asyncio.run(until(lambda: not any(map(is_there, workers)), 60))


def test_a_worker_whose_loop_hangs_ends_with_the_program_too() -> None:
    program = """
import asyncio
from aiovmm import Pool
from aiovmm.pool.workers import process
from tests.vm.guest import config

process._PROGRAM = process._PROGRAM.replace("main(int", '''
import time
from aiovmm.pool.workers import answers, program
program._END = 0.5
answers.ANSWERS["pause"] = lambda *_: (print("hangs", flush=True), time.sleep(600))
main(int''')

async def main():
    async with Pool(config("l", name="g"), max=2, workers=1) as pool, pool.acquire() as vm:
        print(vm._worker.pid, flush=True)
        await vm.pause()

asyncio.run(main())
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert parent.stdout.readline().startswith("a worker says: hangs: ")
        assert is_there(worker)
        parent.kill()
    asyncio.run(until(lambda: not is_there(worker), 60))


@pytest.mark.parametrize(
    ("executable", "error", "text"),
    [
        ("/bin/false", WorkerLost, "ended with code 1"),
        ("/nowhere", HostError, "No such file"),
        ("", HostError, "No such file"),
    ],
)
async def test_a_worker_that_cannot_start(
    executable: str, error: type[Exception], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remains, before = await Remains.once_loop_has_streams(), children()
    async with Pool(guests(), max=2, workers=2) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", executable)
            with pytest.raises(error, match=text):
                await _use(pool)
        await _use(pool)
    assert children() == before
    await remains.check()


async def test_a_process_that_the_system_has_no_room_for_is_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    async with Pool(guests(), max=1, workers=1) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "Popen", none_left)
            with pytest.raises(HostError, match=r"ulimit -u.*pids\.max"):
                await _use(pool)


async def test_a_guest_that_cannot_be_made(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"no kernel" * 100)
    wrong = guests().with_changes({"payload": PayloadConfig(kernel)})
    async with Pool(wrong, max=2, workers=1) as pool:
        with pytest.raises(ImageError, match="kernel"):
            await _use(pool)
        assert pool.stats().failed == 1


FAKE = """
import json, os, socket, struct, sys
sock = socket.socket(fileno=int(sys.argv[1]))
def send(message, data=b""):
    text = json.dumps(message).encode()
    sock.sendall(struct.pack("<II", len(text), len(data)) + text + data)
def hear():
    size, data = struct.unpack("<II", sock.recv(8, socket.MSG_WAITALL))
    message = json.loads(sock.recv(size, socket.MSG_WAITALL))
    sock.recv(data, socket.MSG_WAITALL)
    return message
assert hear()["op"] == "confine"
send({"op": "hello", "vm": 0, "error": None})
made = hear()
vm = made["vm"]
"""

SAYS = {
    "no frame": "sock.sendall(b'GET / HTTP/1.1\\r\\n' * 10)",
    "no object": "sock.sendall(struct.pack('<II', 2, 0) + b'[]')",
    "an answer to nothing": "send({'op': 'done', 'id': 99, 'value': None})",
    "an error that is none": "send({'op': 'failed', 'id': made['id'], 'error': {'kind': 'SystemExit', 'with': []}})",
    "an unknown guest": "send({'op': 'output', 'vm': 77, 'console': 'serial', 'lost': 0}, b'x')",
    "an unknown console": "send({'op': 'output', 'vm': vm, 'console': 'parallel', 'lost': 0}, b'x')",
    "a loss that is none": "send({'op': 'output', 'vm': vm, 'console': 'serial', 'lost': -1}, b'x')",
    "input that was not sent": "send({'op': 'taken', 'vm': vm, 'console': 'serial', 'size': 1})",
    "an event that is none": "send({'op': 'event', 'vm': vm, 'kind': 'party', 'detail': '', 'device': None, 'error': None})",
    "the end as an event": "send({'op': 'event', 'vm': vm, 'kind': 'stopped', 'detail': '', 'device': None, 'error': None})",
    "an end that is none": "send({'op': 'ended', 'vm': vm, 'status': {'reason': 'bored', 'detail': '', 'error': None}})",
    "something else": "send({'op': 'exec', 'vm': vm, 'code': 'import os'})",
    "no places": "send({'op': 'done', 'id': made['id'], 'value': {}})",
    "places that are none": "send({'op': 'done', 'id': made['id'], 'value': [1]})",
    "a place elsewhere": (
        "send({'op': 'done', 'id': made['id'], 'value': {'serial': '/etc/passwd', 'console': '', 'debug_console': ''}})"
    ),
    "words without end": (
        "send({'op': 'event', 'vm': vm, 'kind': 'paused', 'detail': 'x' * 5000, 'device': None, 'error': None, 'config': None})"
    ),
    "an error of lists": "send({'op': 'failed', 'id': made['id'], 'error': {'kind': 'StateError', 'with': [[[]]]}})",
    "another image": (
        "c = made['config']; c['rng'] = {**(c['rng'] or {}), 'src': '/etc/shadow'}\n"
        "send({'op': 'event', 'vm': vm, 'kind': 'resized', 'detail': '', 'device': None, 'error': None, 'config': c})"
    ),
}


@pytest.mark.parametrize("says", list(SAYS))
async def test_a_worker_that_breaks_the_protocol_is_ended(says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    remains, before = await Remains.once_loop_has_streams(), children()
    async with Pool(guests(), max=2, workers=1) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(process, "_PROGRAM", FAKE + SAYS[says] + "\nsock.recv(1)\nhear()\n")
            with pytest.raises(WorkerLost, match="broke the protocol"):
                await _use(pool)
        await _use(pool)
    assert children() == before
    await remains.check()


ASKED = ["to take a guest apart", "to end a guest", "to heed a cancellation", "to tell numbers", "to add a device"]


async def test_a_pool_that_is_closed_waits_for_no_worker_that_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what becomes of that, which nobody waits for any more, is no traceback."""
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    monkeypatch.setattr(process, "_PROGRAM", "import time; time.sleep(1000)")
    for is_begun in (True, False):
        async with asyncio.timeout(HANGS), Pool(guests(), workers=1, warm=1):
            if is_begun:
                await until(lambda: bool(children()))
        assert not children()
        gc.collect()
        assert not told


@pytest.mark.parametrize("asked", ASKED)
async def test_a_worker_that_does_not_answer_is_killed(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PATIENCE", 0.2)
    before = children()
    async with Pool(guests(), max=2, workers=1) as pool:
        async with pool.acquire() as vm:
            os.kill(pid_of(vm), signal.SIGSTOP)
            if asked == "to end a guest":
                assert "had not ended guest 'g-0'" in (await vm.kill()).detail
            elif asked == "to tell numbers":
                assert [numbers async for numbers in vm.stats(every=1)] == []
            elif asked == "to add a device":
                with pytest.raises(WorkerLost, match="had not answered 'add'"):
                    await vm.add(RngConfig(), timeout=0)
            elif asked == "to heed a cancellation":
                pausing = asyncio.create_task(vm.pause())
                await until(lambda: bool(remote(vm)._worker._requests))
                pausing.cancel()
                assert "had not let go" in (await vm.wait()).detail
                await asyncio.wait([pausing])
                assert pausing.cancelled()
        assert vm.status is not None
        assert "after 0.2 s" in vm.status.detail
        await _use(pool)
    assert children() == before


async def test_a_worker_that_is_stopped_is_lost_though_nobody_asks_it_for_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "SILENCE", 0.6)
    async with Pool(guests(), max=2, workers=1) as pool, pool.acquire() as vm:
        await lives(vm)
        os.kill(pid_of(vm), signal.SIGSTOP)
        status = await asyncio.wait_for(vm.wait(), HANGS)
        assert isinstance(status.error, WorkerLost)
        assert "had not answered for 0.6 s: it was stopped" in status.detail


async def test_a_worker_is_not_blamed_for_what_the_programs_own_loop_has_slept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "SILENCE", 3.0)
    async with Pool(guests(), max=1, workers=1) as pool, pool.acquire() as vm:
        for _ in range(2):
            time.sleep(3.5)  # noqa: ASYNC251 - that is the point
            await lives(vm)
        assert vm.status is None


async def test_nor_for_an_answer_that_has_come_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PATIENCE", 0.5)
    async with Pool(guests(), max=1, workers=1) as pool, pool.acquire() as vm:
        await lives(vm)
        numbers = vm.stats(every=60)
        asking = asyncio.ensure_future(anext(numbers))
        await asyncio.sleep(0)
        time.sleep(1.5)  # noqa: ASYNC251 - that is the point
        assert (await asking).vm == vm.name
        pausing = asyncio.create_task(vm.pause())
        await asyncio.sleep(0)
        pausing.cancel()
        await asyncio.sleep(0)
        time.sleep(1.5)  # noqa: ASYNC251
        await asyncio.wait([pausing])
        assert pausing.cancelled()
        await vm.resume()
        await lives(vm)
        assert vm.status is None


async def test_pages_are_counted_at_once_where_both_numbers_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Pool(guests(), max=1, workers=1) as pool, pool.acquire() as vm:
        await lives(vm)
        worker, asked = remote(vm)._worker, list[str]()
        request = worker.request

        def counted(op: str, *args: Any, **fields: Any) -> process.Request:
            asked.append(op)
            return request(op, *args, **fields)

        monkeypatch.setattr(worker, "request", counted)
        resident, own = await vm.memory.both()
        assert 0 < own <= resident <= 4 << 20
        assert asked.count("memory") == 1


async def test_an_answer_to_who_has_just_given_up_is_heard_by_nobody() -> None:
    worker = process.Worker(0, "pool", lambda _: None)
    reply = worker._requests[1] = asyncio.get_running_loop().create_future()
    reply.cancel()
    worker._heard({"op": "done", "id": 1, "value": None}, b"")
    assert not worker._requests


async def test_one_that_reads_no_more_does_not_keep_who_closes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_END", 0.2)
    monkeypatch.setattr(process, "_PROGRAM", FAKE + "import time; time.sleep(1000)")
    worker = process.Worker(0, "pool", lambda _: None)
    await worker.start({})
    for _ in range(20):
        worker.tell("input", 0, bytes(60_000))
    async with asyncio.timeout(HANGS):
        await worker.aclose()


async def test_a_worker_has_none_of_the_programs_streams_and_what_it_says_is_in_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Pool(guests(), max=1, workers=1) as pool:
        async with pool.acquire() as vm:
            links = [os.readlink(f"/proc/{pid_of(vm)}/fd/{fd}") for fd in (1, 2)]
        assert links[0] == links[1]
        assert links[0].startswith("pipe:")
        assert links[0] not in [os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1, 2)]
    with monkeypatch.context() as patch:
        patch.setattr(process, "_PROGRAM", "import sys; sys.exit('no \x1b[6n worker')")
        async with Pool(guests(), max=1, workers=1) as pool:
            with pytest.raises(WorkerLost, match="ended with code 1"):
                await _use(pool)
    assert "a worker says: no \\x1b[6n worker" in caplog.text


async def test_one_that_cannot_be_joined_to_its_socket_is_not_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(sock: socket.socket, *_: object) -> None:
        sock.close()
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    remains, before = await Remains.once_loop_has_streams(), children()
    async with Pool(guests(), max=2, workers=1) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(process, "connect", fails)
            with pytest.raises(HostError, match="Too many open files"):
                await _use(pool)
            assert children() == before
        await _use(pool)
    await remains.check()


REFUSED = {"machine", "balloon", "disks", "nets", "vsock"}
THERE = {
    *("aclose", "add", "agent", "config", "console", "create_process", "debug_console", "events", "files", "forward"),
    *("kill", "limits", "memory", "name", "pause", "remove", "resize", "resume", "run", "serial", "set_limits"),
    *("shutdown", "snapshot", "start", "state", "stats", "status", "stop", "unforward", "wait"),
}


async def test_all_that_a_vm_has_is_there_or_is_refused_by_name() -> None:
    names = {name for name in dir(VM) if not name.startswith("_")}
    assert names == REFUSED | THERE | {"restore", "device", "freeze"}, "say what a guest in a worker does there"
    async with Pool(guests(), max=1, workers=1) as pool, pool.acquire() as vm:
        for name in REFUSED:
            with pytest.raises(StateError, match="runs in a worker process"):
                getattr(vm, name)
        with pytest.raises(StateError, match="runs in a worker process"):
            vm.device("disk0")
        with pytest.raises(StateError, match="runs in a worker process"):
            await vm.freeze()
        with pytest.raises(StateError, match="worker"):
            type(vm).restore("/nowhere")
        with pytest.raises(KeyError, match="disk7"):
            await vm.remove("disk7")
        with pytest.raises(UsageError, match="resize"):
            await vm.resize()
        with pytest.raises(StateError, match="entered by its pool"):
            await vm.__aenter__()
        await lives(vm)


def test_what_cannot_be_in_another_process() -> None:
    with pytest.raises(UsageError, match="no function"):
        Pool(lambda name: VM(guests()), workers=1)
    with pytest.raises(ConfigError, match="has no terminal"):
        Pool(guests().with_changes({"serial": ConsoleConfig(ConsoleMode.TTY)}), workers=1)
    with pytest.raises(ConfigError, match="descriptors"):
        Pool(guests().with_changes({"nets": (NetConfig(fd=(7,)),)}), workers=1)
