"""vCPUs on the processors of the host that they were given."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from aiovmm import VM, CpusConfig, HostError
from tests.vm.guest import config, until


async def test_a_vcpu_runs_where_it_may() -> None:
    here = sorted(os.sched_getaffinity(0))
    chosen = here[-1]
    cpus = CpusConfig(boot=2, affinity=((1, (chosen,)),))
    async with VM(replace(config("s"), cpus=cpus)) as vm:
        await vm.start()
        await until(lambda: all(vcpu.thread_id for vcpu in vm.machine.vcpus))
        first, second = (vcpu.thread_id for vcpu in vm.machine.vcpus)
        assert first is not None
        assert second is not None
        assert os.sched_getaffinity(second) == {chosen}
        assert os.sched_getaffinity(first) == set(here)


@pytest.mark.parametrize("absent", [1 << 12, 1 << 40])
async def test_a_processor_that_the_host_has_not(absent: int) -> None:
    cpus = CpusConfig(affinity=((0, (absent,)),))
    async with VM(replace(config("s"), cpus=cpus)) as vm:
        with pytest.raises(HostError, match=r"binding vCPU 0.*cpus\.affinity= has processors of the host"):
            await vm.start()
        assert vm.state.value == "stopped"


async def test_a_vcpu_that_is_not_there_is_passed_over_and_remarked_on(caplog: pytest.LogCaptureFixture) -> None:
    chosen = max(os.sched_getaffinity(0))
    async with VM(replace(config("s"), cpus=CpusConfig(affinity=((5, (0,)), (0, (chosen,)))))) as vm:
        await vm.start()
        vcpu = vm.machine.vcpus[0]
        await until(lambda: vcpu.thread_id is not None)
        assert os.sched_getaffinity(vcpu.thread_id or 0) == {chosen}
    assert "there is no vCPU 5" in caplog.text
