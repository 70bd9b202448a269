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
from dataclasses import fields
from typing import cast

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from aiovmm.stats.values import VMStats
from aiovmm.vm import VM

__all__ = ["VMCollector"]

_PATIENCE = 10.0  # seconds: a loop that is later than that is not well, which the scraper should see as a failure


class VMCollector(Collector):
    """`vms` is called on the event loop on which this was made, at each scrape; VMs that have ended may be among them."""

    def __init__(self, vms: Callable[[], Iterable[VM]]) -> None:
        self._vms = vms
        self._loop = asyncio.get_running_loop()

    def collect(self) -> Iterator[Metric]:
        """All numbers of all VMs. In another thread than the loop's. Raises TimeoutError."""
        stats = asyncio.run_coroutine_threadsafe(self._read(), self._loop).result(_PATIENCE)
        yield from _of_vms(stats)
        yield from _of_devices(stats)
        yield from _of_loop(stats)

    async def _read(self) -> list[VMStats]:
        found = await asyncio.gather(*map(_now, self._vms()))
        return [stats for stats in found if stats is not None]


async def _now(vm: VM) -> VMStats | None:
    """Also of one that is in a pool's worker; None of one that was lost with it."""
    numbers = cast(AsyncGenerator[VMStats, None], vm.stats(every=_PATIENCE))
    async with aclosing(numbers):
        return await anext(numbers, None)


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


def _of_loop(stats: list[VMStats]) -> Iterator[Metric]:
    loop = next((one.loop for one in stats if one.loop is not None), None)
    if loop is None:
        return
    yield GaugeMetricFamily(
        "aiovmm_loop_lag_seconds", "How late the event loop was with its last sign", value=loop.last
    )
    yield GaugeMetricFamily("aiovmm_loop_lag_max_seconds", "The latest of all", value=loop.max)
    blamed = CounterMetricFamily("aiovmm_loop_blocked", "Times that somebody kept the loop for long", labels=["who"])
    for who, times in loop.blamed.items():
        blamed.add_metric([who], times)
    yield blamed
