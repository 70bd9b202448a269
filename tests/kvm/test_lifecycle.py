"""Starting, stopping, pausing and ending vCPUs."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from aiovmm.errors import KvmError, StateError
from aiovmm.kvm import Kvm
from aiovmm.kvm.exits import Hlt, InternalError, RunFailed, Shutdown, Stopped
from aiovmm.runtime import crew
from tests.guests.machine import Machine
from tests.host_threads import of_vcpus, threads
from tests.limits import HANGS
from tests.open_files import descriptors


async def stop_timed(m: Machine, record_property: Callable[[str, object], None]) -> None:
    """Stop and join; the time it took goes into the report, a deadline guards it."""
    began = time.perf_counter()
    m.cpu.stop()
    assert await m.ended(timeout=HANGS) == Stopped()
    record_property("stop_ms", round(1000 * (time.perf_counter() - began), 3))
    assert not m.cpu.running


@pytest.mark.parametrize("guest", ["forever", "halted", "ask", "flood", "strings", "swallow"])
async def test_stop_in_the_guest(guest: str, kvm: Kvm, record_property: Callable[[str, object], None]) -> None:
    async with Machine(guest, kvm=kvm) as m:
        m.start()
        await m.until(lambda: bool(m.log))
        await m.cpu.pause()
        m.cpu.resume()
        await stop_timed(m, record_property)
        m.cpu.stop()


async def test_stop_while_waiting_for_a_device(kvm: Kvm, record_property: Callable[[str, object], None]) -> None:
    never = asyncio.Event()

    async def wait() -> None:
        await never.wait()

    async with Machine("hello", kvm=kvm) as m:
        m.device.on_write = lambda offset, data: wait()
        m.start()
        await m.until(lambda: m.written == b"A")
        await stop_timed(m, record_property)
        never.set()  # the late answer goes nowhere


async def test_stop_while_waiting_on_a_full_ring(kvm: Kvm, record_property: Callable[[str, object], None]) -> None:
    async with Machine("flood", ring_size=4, kvm=kvm) as m:
        m.start()
        deadline = time.monotonic() + HANGS
        while not m.cpu.counters.full:  # the event loop does not run here, so nobody makes room
            assert time.monotonic() < deadline
        began = time.perf_counter()
        m.cpu.stop()
        while m.cpu.running:
            assert time.monotonic() < deadline
        record_property("stop_ms", round(1000 * (time.perf_counter() - began), 3))
        assert await m.ended() == Stopped()


async def test_stop_while_paused_and_before_the_first_instruction(
    kvm: Kvm, record_property: Callable[[str, object], None]
) -> None:
    async with Machine("forever", kvm=kvm) as m:
        await m.cpu.pause()
        m.start()
        assert m.cpu.running
        assert m.cpu.paused
        await stop_timed(m, record_property)
        assert m.log == []
        m.cpu.resume()
        m.start()
        m.cpu.stop()
        assert await m.ended() == Stopped()


async def test_pause_stops_the_guest_and_resume_lets_it_go_on(kvm: Kvm) -> None:
    async with Machine("forever", kvm=kvm) as m:
        m.start()
        await m.until(lambda: b"R" in m.written)
        for _ in range(100):
            await m.cpu.pause()
            await m.cpu.pause()
            assert m.state.get_regs().rip >= 0x10000
            m.cpu.resume()
            m.cpu.resume()
            await m.counts_on()


async def test_a_paused_guest_stands_still(kvm: Kvm) -> None:
    async with Machine("forever", kvm=kvm) as m:
        m.start()
        await m.until(lambda: m.counter > 0)
        await m.cpu.pause()
        seen = m.counter
        other = threading.Event()
        assert not other.wait(0.05)  # time for a guest that runs to count on
        assert m.counter == seen


async def test_pause_completes_the_access_in_flight(kvm: Kvm) -> None:
    async with Machine("ask", kvm=kvm) as m:
        m.start()
        await m.until(lambda: m.counter > 0)
        for _ in range(100):
            await m.cpu.pause()
            regs = m.state.get_regs()
            reads = sum(a.kind == "sync read" for a in m.log)
            done = m.counter
            assert reads in (done, done + 1), "at most the count of the last read is outstanding"
            assert regs.rax & 0xFF == 0x11
            m.cpu.resume()


async def test_resume_before_the_pause_took_hold(kvm: Kvm) -> None:
    async with Machine("forever", kvm=kvm) as m:
        m.start()
        for _ in range(50):
            pausing = asyncio.ensure_future(m.cpu.pause())
            await asyncio.sleep(0)
            m.cpu.resume()
            with pytest.raises(StateError):
                await pausing
        await m.counts_on()
        await m.cpu.pause()
        assert m.cpu.paused


async def test_a_cancelled_pause_can_be_awaited_again(kvm: Kvm) -> None:
    async with Machine("forever", kvm=kvm) as m:
        m.start()
        pausing = asyncio.ensure_future(m.cpu.pause())
        await asyncio.sleep(0)
        pausing.cancel()
        await m.cpu.pause()
        assert m.cpu.paused


async def test_state_of_a_running_vcpu_is_refused(kvm: Kvm) -> None:
    async with Machine("forever", kvm=kvm) as m:
        m.start()
        with pytest.raises(StateError, match="pause it first"):
            m.state.get_regs()
        with pytest.raises(StateError, match="still running"):
            m.vm.close()
        with pytest.raises(StateError, match="runs"):
            m.cpu.start()


async def test_a_stopped_vcpu_can_be_started_again(kvm: Kvm) -> None:
    async with Machine("forever", kvm=kvm) as m:
        for _ in range(20):
            m.start()
            await m.counts_on()
            m.cpu.stop()
            assert await m.ended() == Stopped()
        assert m.exits == []


async def test_a_triple_fault(kvm: Kvm) -> None:
    async with Machine("triple", kvm=kvm) as m:
        m.start()
        assert await m.ended() == Shutdown()
        assert m.exits == [(0, Shutdown())]
        assert m.written == b"T"
        assert await m.cpu.join() == Shutdown()


async def test_a_halt_that_nothing_can_end(kvm: Kvm) -> None:
    async with Machine("halted", irqchip=False, kvm=kvm) as m:
        m.start()
        assert await m.ended() == Hlt()


async def test_an_instruction_that_the_emulator_does_not_know(kvm: Kvm) -> None:
    async with Machine("unknown", kvm=kvm) as m:
        m.start()
        final = await m.ended()
        assert isinstance(final, InternalError)
        assert final.suberror == 1
        assert final.instruction.startswith(bytes.fromhex("f3 0f b8 03"))
        assert "f3 0f b8 03" in str(final)


async def test_kvm_run_itself_fails(kvm: Kvm) -> None:
    async with Machine("hello", kvm=kvm) as m:
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, m.cpu.fd, inheritable=False)
        os.close(null)
        m.start()
        assert await m.ended() == RunFailed(errno.ENOTTY)
        assert m.exits == [(0, RunFailed(errno.ENOTTY))]


async def test_no_signal_of_the_process_is_touched(kvm: Kvm) -> None:
    before = {s: signal.getsignal(s) for s in signal.valid_signals()}
    async with Machine("forever", kvm=kvm) as m:
        m.start()
        for _ in range(20):
            await m.cpu.pause()
            m.cpu.resume()
        assert {s: signal.getsignal(s) for s in signal.valid_signals()} == before
    assert signal.sigpending() == set()


async def test_a_users_handler_gets_its_signals_and_no_other(kvm: Kvm) -> None:
    caught: list[int] = []
    signals = (signal.SIGURG, signal.SIGUSR1, signal.SIGALRM, signal.SIGRTMIN)
    old = {s: signal.signal(s, lambda number, frame: caught.append(number)) for s in signals}
    try:
        async with Machine("forever", kvm=kvm) as m:
            m.start()
            await m.until(lambda: m.counter > 0)
            for _ in range(20):
                await m.cpu.pause()
                m.cpu.resume()
            assert caught == []
            for number in signals:
                os.kill(os.getpid(), number)
            await m.until(lambda: len(caught) == len(signals))
            await m.counts_on()
        assert sorted(caught) == sorted(signals)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


async def test_no_signal_of_the_process_is_lost_to_a_vcpu_that_is_kicked_meanwhile(kvm: Kvm) -> None:
    caught = threading.Semaphore(0)
    sent = 0

    def send() -> None:
        nonlocal sent
        for _ in range(2000):
            os.kill(os.getpid(), signal.SIGURG)
            if not caught.acquire(timeout=HANGS):
                return
            sent += 1

    old = signal.signal(signal.SIGURG, lambda number, frame: caught.release())
    try:
        async with Machine("forever", cpus=1, kvm=kvm) as m:
            m.start()
            sender = threading.Thread(target=send)
            sender.start()
            while sender.is_alive():
                await m.cpu.pause()
                m.cpu.resume()
            assert sent == 2000
    finally:
        signal.signal(signal.SIGURG, old)


def mappings() -> int:
    gc.collect()
    return sum("kvm" in line or "aiovmm" in line for line in Path("/proc/self/maps").read_text().splitlines())


def busy() -> int:
    """Threads without those that wait for work of any VM's."""
    return len(of_vcpus()) + sum(thread.name != crew.NAME for thread in threading.enumerate())


async def test_many_lives_leave_nothing_behind(kvm: Kvm) -> None:
    async def live(guest: str) -> None:
        async with Machine(guest, cpus=2, kvm=kvm) as m:
            m.start()
            await m.until(lambda: bool(m.log))

    await live("hello")
    before = descriptors(), busy(), mappings(), len(asyncio.all_tasks())
    for _ in range(50):
        for guest in ("hello", "ask", "flood", "triple"):
            await live(guest)
    assert (descriptors(), busy(), mappings(), len(asyncio.all_tasks())) == before


async def test_two_hundred_machines_at_once(kvm: Kvm) -> None:
    machines = [Machine("ask", kvm=kvm) for _ in range(200)]
    try:
        for m in machines:
            await m.__aenter__()
        for m in machines:
            m.start()
        for m in machines:
            await m.counts_on(3)
        await asyncio.gather(*(m.cpu.pause() for m in machines))
        for m in machines:
            m.cpu.resume()
            m.cpu.stop()
        assert all(final == Stopped() for final in await asyncio.gather(*(m.cpu.join() for m in machines)))
        assert not any(m.errors or m.exits for m in machines)
    finally:
        for m in machines:
            await m.aclose()


async def test_a_vcpu_too_many(kvm: Kvm) -> None:
    async with Machine("hello", kvm=kvm) as m:
        with pytest.raises(KvmError, match="creating vCPU 1"):
            m.vm.create_vcpu(1)
        with pytest.raises(KvmError, match="creating vCPU 0: File exists"):
            m.vm.create_vcpu(0)


async def test_the_hosts_tools_can_tell_the_vcpus_apart(kvm: Kvm) -> None:
    async with Machine("hello", cpus=2, kvm=kvm) as m:
        m.start()
        await m.until(lambda: {"vcpu-0", "vcpu-1"} <= set(threads().values()))


FORGETFUL = """
import asyncio, gc
from tests.guests.machine import Machine
from tests.host_threads import of_vcpus

async def main():
    m = Machine("ask", cpus=2)
    await m.__aenter__()
    m.start()
    await m.counts_on(10)
    return m

for _ in range(3):
    m = asyncio.run(main())
    if {collect}:
        del m
        gc.collect()
        assert not of_vcpus()
"""


@pytest.mark.parametrize("collect", [True, False])
def test_a_program_that_forgets_its_guest_ends_all_the_same(collect: bool, kvm: Kvm) -> None:
    command = [sys.executable, "-X", "faulthandler", "-c", FORGETFUL.format(collect=collect)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")


async def test_where_an_ended_vcpu_runs_is_no_other_threads_matter(kvm: Kvm) -> None:
    """glibc takes a thread that has ended, and was not joined yet, for the calling one."""
    here = os.sched_getaffinity(0)
    async with Machine("halted", irqchip=False, kvm=kvm) as m:
        m.start()
        assert await m.ended() == Hlt()
        await m.until(lambda: not of_vcpus())
        try:
            m.cpu.run_on([min(here)])
            assert os.sched_getaffinity(0) == here
        finally:
            os.sched_setaffinity(0, here)


async def test_threads_that_cannot_have_their_core_leave_no_stack(kvm: Kvm) -> None:
    async with Machine("halted", kvm=kvm) as m:
        before = stacks()
        for _ in range(50):
            with pytest.raises(KvmError, match="starting the thread of vCPU 0"):
                m.cpu.start(core=-2)  # nobody has that
        assert stacks() < before + 50


def stacks() -> int:
    """Mappings as large as a vCPU thread's; others may have some."""
    ends = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()]
    return sum(int(end, 16) - int(start, 16) == 256 << 10 for start, end in ends)
