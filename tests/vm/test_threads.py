"""Threads say whose they are, to the system's tools, and in Python if they are its own."""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from aiovmm import VM, ConsoleConfig, ConsoleMode, CpusConfig, DiskConfig, PmemConfig
from aiovmm.devices.virtio.rng import RngDevice
from aiovmm.devices.virtio.rng.source import ThreadedSource
from aiovmm.runtime import crew
from tests.host_threads import of_vcpus
from tests.vm.guest import config, counts_on, until


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("web", "web vcpu-1"),
        ("a-very-long-name-of-a-guest", "a-very-l vcpu-1"),
        ("\u00fc" * 8, None),
        ("\udcff" * 8, "???????? vcpu-1"),
    ],
)
async def test_threads_of_vcpus_are_named_after_their_vm(name: str, seen: str | None) -> None:
    async with VM(config("x", 2, name=name)) as vm:
        await vm.start()
        await until(lambda: len(of_vcpus()) == 2)
        (comm,) = (name for name in of_vcpus().values() if name.endswith(" vcpu-1"))
        assert seen is None or comm == seen


async def test_threads_of_devices_are_named_after_their_vm_and_id(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(1 << 20))
    read, write = os.pipe()
    source = ThreadedSource(read, "pipe")
    async with VM(config("x", name="web", disks=(DiskConfig(path=image),)), devices=[RngDevice(lambda: source)]) as vm:
        engine = vm.disks[0]._engine
        assert engine is not None
        assert (await engine.submit(threading.current_thread)).name.startswith("web: disk0")
        reading = asyncio.ensure_future(source.read([memoryview(bytearray(1))]))
        await until(lambda: "web: custom0" in (thread.name for thread in threading.enumerate()))
        os.write(write, b"x")
        assert await reading == 1
        name = vm.machine.worker.submit(lambda: threading.current_thread().name)
        assert await name == "web: kvm calls"
        comm = vm.machine.worker.submit(Path("/proc/thread-self/comm").read_text)
        assert (await comm) == "web kvm calls\n"
    os.close(write)


async def test_every_thread_that_a_vm_starts_says_whose_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    start = threading.Thread.start

    def noted(thread: threading.Thread) -> None:
        started.append(thread.name)
        start(thread)

    def lent(name: str, work: crew.Work) -> None:
        started.append(name)
        run(name, work)

    run = crew.run
    monkeypatch.setattr(threading.Thread, "start", noted)
    monkeypatch.setattr(crew, "run", lent)
    for name in ("disk", "pmem"):
        (tmp_path / name).write_bytes(bytes(2 << 20))
    serial = ConsoleConfig(ConsoleMode.FILE, tmp_path / "serial")
    disks, pmems = (DiskConfig(path=tmp_path / "disk"),), (PmemConfig(file=tmp_path / "pmem"),)
    async with VM(config("x", name="web", disks=disks, pmems=pmems, serial=serial)) as vm:
        await vm.start()
        await counts_on(vm)
    assert {name for name in started if not name.startswith("web: ")} <= {"aiovmm watchdog", crew.NAME}
    assert not any("vcpu" in name for name in started), "the loop would wait until it had the interpreter"
    assert {"web: make memory", "web: disk0 open", "web: pmem0 close"} <= set(started)


OWN = os.sched_getscheduler(0)  # who tests at leisure has SCHED_IDLE himself


@pytest.mark.parametrize(("nice", "policy"), [(0, OWN), (5, OWN), (20, os.SCHED_IDLE)])
async def test_vcpus_stand_back_behind_the_loop(nice: int, policy: int) -> None:
    async with VM(replace(config("x"), cpus=CpusConfig(2, vcpu_nice=nice))) as vm:
        await vm.start()
        await until(lambda: set(of_vcpus().values()) == {"guest vcpu-0", "guest vcpu-1"})
        await counts_on(vm)
        threads = of_vcpus()
        own = os.getpriority(os.PRIO_PROCESS, 0)
        for thread in threads:
            assert os.sched_getscheduler(thread) == policy
            assert os.getpriority(os.PRIO_PROCESS, thread) == (own + nice if nice < 20 else own)
        assert os.getpriority(os.PRIO_PROCESS, 0) == own
        await counts_on(vm)
