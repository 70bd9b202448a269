"""The numbers of VMs for Prometheus, by its own client library (`pip install aiovmm[prometheus]`).

    collector = VMCollector(lambda: vms)
    prometheus_client.REGISTRY.register(collector)
    prometheus_client.start_http_server(9100)

The library's server asks in a thread of its own; the numbers are read on the VMs' event loop, and the thread waits for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing
from dataclasses import fields, replace
from typing import NamedTuple, cast
from weakref import WeakKeyDictionary, WeakSet

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from aiovmm.errors import AiovmmError, StateError
from aiovmm.runtime.log import Log
from aiovmm.stats.values import LoopStats, VMStats
from aiovmm.vm import VM

__all__ = ["VMCollector"]

_PATIENCE = 10.0  # seconds: a loop that is later than that is not well, which the scraper should see as a failure
_LATE = 5.0  # seconds for one VM: the others' numbers do not wait for a worker that does not answer


_REFUSED = (AiovmmError, OSError)
"""What a guest's worker may answer, which may be the guest's own by now: others' numbers are told all the same."""


class _Numbers(NamedTuple):
    """Of one VM. `pages` are bytes that are resident, and of them its own, if they were asked for and it has memory."""

    stats: VMStats
    pages: tuple[int, int] | None


class VMCollector(Collector):
    """`vms` is called on the event loop on which this was made, at each scrape; VMs that have ended may be among them. Of VMs
    that share a name all but the first are NAME#2, NAME#3, ... in the label `vm`, each the same as long as it is there.

    `memory`: count, at each scrape and in a thread, what of each guest's RAM is resident, and what of that is its own, as
    `vm.memory.resident()` and `own()` do.
    """

    def __init__(self, vms: Callable[[], Iterable[VM]], *, memory: bool = False) -> None:
        self._vms = vms
        self._memory = memory
        self._loop = asyncio.get_running_loop()
        self._labels: WeakKeyDictionary[VM, str] = WeakKeyDictionary()
        self._late: set[asyncio.Task[_Numbers | None]] = set()
        self._left_out: WeakSet[VM] = WeakSet()  # and said to be

    def describe(self) -> Iterator[Metric]:
        """What there is, without numbers: what a registry asks first, perhaps on the event loop."""
        return _metrics([])

    def collect(self) -> Iterator[Metric]:
        """All numbers of all VMs. In another thread than the loop's. Raises TimeoutError, and StateError on the loop."""
        if asyncio._get_running_loop() is self._loop:
            raise StateError("the event loop would wait for itself: await asyncio.to_thread(generate_latest, registry)")
        reading = asyncio.run_coroutine_threadsafe(self._read(), self._loop)
        try:
            numbers = reading.result(_PATIENCE)
        finally:
            reading.cancel()
        return _metrics(numbers)

    async def _read(self) -> list[_Numbers]:
        tasks = {asyncio.create_task(self._now(vm), name=f"numbers of {vm.name}"): vm for vm in self._vms()}
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_LATE)
            for task in late:
                task.cancel()
                self._late.add(task)  # else nobody would hold it
                task.add_done_callback(self._late.discard)
                self._leave_out(tasks[task], f"no answer within {_LATE:g} s")
        found = [task.result() for task in tasks if task.done()]
        return [numbers for numbers in found if numbers is not None]

    async def _now(self, vm: VM) -> _Numbers | None:
        """Also of one that is in a pool's worker; None of one that was lost with it, or that tells none."""
        label = self._label(vm)
        iterator = cast(AsyncGenerator[VMStats, None], vm.stats(every=_PATIENCE))
        async with aclosing(iterator):
            try:
                stats = await anext(iterator, None)
            except _REFUSED as exc:
                self._leave_out(vm, str(exc))
                return None
        if stats is None:
            return None
        return _Numbers(replace(stats, vm=label), await _pages(vm) if self._memory else None)

    def _leave_out(self, vm: VM, why: str) -> None:
        """Said once of each: a scrape without it looks like one of fewer VMs."""
        if vm not in self._left_out:
            self._left_out.add(vm)
            Log(vm=self._label(vm)).warning("left out of a scrape: it tells no numbers", error=why)

    def _label(self, vm: VM) -> str:
        if vm not in self._labels:
            taken, number, label = set(self._labels.values()), 1, vm.name
            while label in taken:
                number += 1
                label = f"{vm.name}#{number}"
            self._labels[vm] = label
        return self._labels[vm]


async def _pages(vm: VM) -> tuple[int, int] | None:
    try:
        return await vm.memory.both()
    except _REFUSED:  # it has none now, or is gone with its worker
        return None


def _metrics(numbers: list[_Numbers]) -> Iterator[Metric]:
    stats = [one.stats for one in numbers]
    yield from _of_vms(stats)
    yield from _of_devices(stats)
    yield from _of_memory(numbers)
    yield from _of_loops(stats)


def _of_memory(numbers: list[_Numbers]) -> Iterator[Metric]:
    resident = GaugeMetricFamily(
        "aiovmm_memory_resident_bytes", "Of the guest's RAM, that take up the host's", labels=["vm"]
    )
    own = GaugeMetricFamily("aiovmm_memory_own_bytes", "Of them, that no other guest has", labels=["vm"])
    for one in numbers:
        if one.pages is not None:
            resident.add_metric([one.stats.vm], one.pages[0])
            own.add_metric([one.stats.vm], one.pages[1])
    yield from (resident, own)


def _of_vms(stats: list[VMStats]) -> Iterator[Metric]:
    up = GaugeMetricFamily(
        "aiovmm_uptime_seconds", "From the first start to the end, or to now", labels=["vm", "state"]
    )
    power = CounterMetricFamily("aiovmm_power_ons", "The first start and all reboots", labels=["vm"])
    memory = GaugeMetricFamily("aiovmm_memory_bytes", "The guest's RAM", labels=["vm"])
    given = CounterMetricFamily("aiovmm_memory_given_back_bytes", "By its balloon", labels=["vm"])
    exits = CounterMetricFamily(
        "aiovmm_exits",
        "Returns of KVM_RUN, and of them accesses by how they were answered",
        labels=["vm", "vcpu", "kind"],
    )
    consoles = CounterMetricFamily(
        "aiovmm_console_bytes", "That the guest has printed (out) and taken (in)", labels=["vm", "console", "kind"]
    )
    loop = CounterMetricFamily("aiovmm_loop_seconds", "Of the event loop, for exits and devices", labels=["vm"])
    for one in stats:
        up.add_metric([one.vm, one.state.value], one.uptime)
        power.add_metric([one.vm], one.power_ons)
        memory.add_metric([one.vm], one.memory)
        given.add_metric([one.vm], one.given_back)
        loop.add_metric([one.vm], one.loop_seconds)
        for id_, console in one.consoles.items():
            consoles.add_metric([one.vm, id_, "out"], console.bytes_out)
            consoles.add_metric([one.vm, id_, "in"], console.bytes_in)
        for index, vcpu in enumerate(one.vcpus):
            for field in fields(vcpu):
                exits.add_metric([one.vm, str(index), field.name], getattr(vcpu, field.name))
    yield from (up, power, memory, given, exits, consoles, loop)


def _of_devices(stats: list[VMStats]) -> Iterator[Metric]:
    queues = CounterMetricFamily("aiovmm_queue", "Chains, kicks, interrupts", labels=["vm", "device", "queue", "kind"])
    disks = CounterMetricFamily("aiovmm_disk", "Requests and bytes", labels=["vm", "device", "kind"])
    seconds = CounterMetricFamily("aiovmm_disk_seconds", "Time of all requests", labels=["vm", "device", "kind"])
    nets = CounterMetricFamily(
        "aiovmm_net", "Packets and bytes, as the guest sees them", labels=["vm", "device", "kind"]
    )
    vsocks = GaugeMetricFamily(
        "aiovmm_vsock", "Connections that there are, and bytes, as the guest sees them", labels=["vm", "device", "kind"]
    )
    for one in stats:
        for name, device in one.devices.items():
            for index, queue in enumerate(device.queues):
                for field in fields(queue):
                    queues.add_metric([one.vm, name, str(index), field.name], getattr(queue, field.name))
            if device.disk is not None:
                for key, value in vars(device.disk).items():
                    if isinstance(value, int):
                        disks.add_metric([one.vm, name, key], value)
                seconds.add_metric([one.vm, name, "read"], device.disk.read_latency.total)
                seconds.add_metric([one.vm, name, "write"], device.disk.write_latency.total)
            if device.net is not None:
                for key, value in vars(device.net).items():
                    nets.add_metric([one.vm, name, key], value)
            if device.vsock is not None:
                for key, value in vars(device.vsock).items():
                    vsocks.add_metric([one.vm, name, key], value)
    yield from (queues, disks, seconds, nets, vsocks)


def _of_loops(stats: list[VMStats]) -> Iterator[Metric]:
    """This process's, and those of a pool's workers."""
    lag = GaugeMetricFamily(
        "aiovmm_loop_lag_seconds", "How late the event loop was with its last sign", labels=["process"]
    )
    most = GaugeMetricFamily("aiovmm_loop_lag_max_seconds", "The latest of all", labels=["process"])
    blamed = CounterMetricFamily(
        "aiovmm_loop_blocked", "Times that somebody kept the loop for long", labels=["process", "who"]
    )
    loops: dict[int, LoopStats] = {one.loop.pid: one.loop for one in stats if one.loop is not None}
    for pid, loop in loops.items():
        lag.add_metric([str(pid)], loop.last)
        most.add_metric([str(pid)], loop.max)
        for who, times in loop.blamed.items():
            blamed.add_metric([str(pid), who], times)
    yield from (lag, most, blamed)
