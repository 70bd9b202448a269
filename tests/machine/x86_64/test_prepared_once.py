"""What is the same for all guests of one configuration is made for the first of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from aiovmm import VM, CpusConfig
from aiovmm.boot.x86_64 import mptable
from aiovmm.kvm import Kvm
from aiovmm.kvm.x86_64 import cpuid
from aiovmm.kvm.x86_64.vcpustate import VcpuState
from aiovmm.machine.x86_64 import tables, vcpus
from aiovmm.runtime.prepared import Prepared
from tests.vm.guest import config, counts_on

pytestmark = pytest.mark.kvm


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often each of what is shared was made, from nothing on."""
    counts: dict[str, int] = {}

    def count(module: Any, name: str) -> None:
        call: Callable[..., Any] = getattr(module, name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            counts[name] = counts.get(name, 0) + 1
            return call(*args, **kwargs)

        monkeypatch.setattr(module, name, counting)

    monkeypatch.setattr(vcpus, "_processors", Prepared(64))
    monkeypatch.setattr(tables, "_tables", Prepared(64))
    count(cpuid, "get_supported")
    count(vcpus, "of_host")
    count(vcpus, "adjust")
    count(mptable, "mp_table")
    return counts


async def run(number: int = 1, **changes: Any) -> None:
    async with VM(replace(config("s", number), **changes)) as vm:
        await vm.start()
        await counts_on(vm)


async def test_it_is_made_once(counted: dict[str, int]) -> None:
    await run(2)
    assert counted == {"get_supported": 1, "of_host": 1, "adjust": 2, "mp_table": 1}
    await run(2)
    assert counted == {"get_supported": 1, "of_host": 1, "adjust": 2, "mp_table": 1}


async def test_another_configuration_has_its_own(counted: dict[str, int]) -> None:
    await run(1)
    await run(1, cpus=CpusConfig(1, nested=True))
    await run(3)
    assert counted == {"get_supported": 3, "of_host": 3, "adjust": 5, "mp_table": 2}


async def test_another_kvm_is_asked_anew(counted: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    await run(1)
    monkeypatch.setattr(Kvm, "identity", (0, 0, 0, 0))
    await run(1)
    assert counted["get_supported"] == 2


async def test_what_a_vcpu_is_told_is_what_was_made_for_it() -> None:
    async with VM(config("s", 2)) as vm:
        with Kvm.open() as kvm:
            processor = vcpus.Processor.of(kvm, vm.config.cpus)
            fresh = vcpus.Processor._of(kvm, vm.config.cpus)
        khz = VcpuState(vm.machine.vcpus[0]).get_tsc_khz()
        assert processor.cpuid(0, khz) is processor.cpuid(0, khz)
        assert [processor.cpuid(i, khz) for i in range(2)] == [fresh._cpuid(i, khz) for i in range(2)]
        assert processor.cpuid(0, khz) != processor.cpuid(1, khz), "each its APIC id"
