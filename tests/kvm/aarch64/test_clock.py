"""When an arm64 guest's counter stands still with it: unless all its processors wait for an interrupt."""

from __future__ import annotations

from typing import Any

import pytest

from aiovmm.kvm.aarch64 import clock
from aiovmm.kvm.aarch64.clock import GuestCounter, waits
from aiovmm.kvm.aarch64.registers import PC, PSTATE, VIRTUAL_COUNTER, system_register
from aiovmm.memory import GuestMemory

RAM, SIZE, CODE = 0x4000_0000, 2 << 20, 0x4001_0000
WFI, NOP = bytes.fromhex("7f2003d5"), bytes.fromhex("1f2003d5")
EL0, EL1T, EL1H = 0x0, 0x3C4, 0x3C5
RUNNABLE, STOPPED = 0, 5


class FakeVcpu:
    """As far as it is looked at: without translation, after the instruction at CODE."""

    def __init__(self, pstate: int = EL1H, pc: int = CODE + 4, mp_state: int = RUNNABLE) -> None:
        self.registers = {PSTATE: pstate, PC: pc, VIRTUAL_COUNTER: 1000}
        self._mp_state = mp_state

    def ioctl(self, _request: int, argument: Any, _operation: str) -> int:
        """See Vcpu."""
        argument.mp_state = self._mp_state
        return 0


class FakeRegisters:
    """See registers.Registers."""

    def __init__(self, vcpu: FakeVcpu) -> None:
        self._registers = vcpu.registers

    def get(self, number: int) -> int:
        """Nothing, of those that are not given."""
        return self._registers.get(number, 0)

    def set(self, number: int, value: int) -> None:
        """That one."""
        self._registers[number] = value


@pytest.fixture(autouse=True)
def registers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "Registers", FakeRegisters)


@pytest.fixture
def memory() -> GuestMemory:
    memory = GuestMemory.create([(RAM, SIZE)])
    memory.write(CODE, WFI + NOP)
    return memory


def vcpu(**its: int) -> Any:
    return FakeVcpu(**its)


@pytest.mark.parametrize(
    ("its", "expected"),
    [
        ({}, True),
        ({"pstate": EL1T}, True),
        ({"pstate": EL0}, False),
        ({"pc": CODE + 8}, False),  # after another instruction
        ({"pc": CODE}, False),
        ({"pc": 0}, False),
        ({"pc": RAM}, False),
        ({"pc": RAM + SIZE + 4}, False),
        ({"pc": 0, "pstate": EL0, "mp_state": STOPPED}, True),
    ],
)
def test_a_processor_waits_after_its_wfi(its: dict[str, int], expected: bool, memory: GuestMemory) -> None:
    assert waits(vcpu(**its), memory) == expected


@pytest.mark.parametrize("table", [0, RAM + SIZE - 8, RAM + SIZE, (1 << 48) - 8])
def test_tables_that_lead_nowhere_are_of_one_who_does_not_wait(table: int, memory: GuestMemory) -> None:
    one = vcpu()
    sctlr, tcr, ttbr0 = (system_register(3, 0, crn, 0, op2) for crn, op2 in ((1, 0), (2, 2), (2, 0)))
    one.registers |= {sctlr: 1, tcr: 25, ttbr0: table}
    assert not waits(one, memory)


def test_the_counter_of_a_busy_guest_stands_still(memory: GuestMemory) -> None:
    vcpus = [vcpu(), vcpu(pstate=EL0)]
    counter = GuestCounter()
    counter.stop(vcpus, memory)
    assert counter.stood == 1000
    vcpus[0].registers[VIRTUAL_COUNTER] = 5000  # KVM's goes on
    counter.stop(vcpus, memory)
    assert counter.stood == 1000, "it is paused already"
    counter.start(vcpus)
    assert vcpus[0].registers[VIRTUAL_COUNTER] == 1000
    vcpus[0].registers[VIRTUAL_COUNTER] = 6000
    counter.start(vcpus)
    assert vcpus[0].registers[VIRTUAL_COUNTER] == 6000, "it stood once"


def test_that_of_an_idle_one_goes_on(memory: GuestMemory) -> None:
    vcpus = [vcpu(), vcpu(mp_state=STOPPED)]
    counter = GuestCounter()
    counter.stop(vcpus, memory)
    vcpus[0].registers[VIRTUAL_COUNTER] = 5000
    counter.start(vcpus)
    assert vcpus[0].registers[VIRTUAL_COUNTER] == 5000


def test_a_restored_guest_goes_on_from_where_it_stood() -> None:
    vcpus = [vcpu()]
    GuestCounter(77).start(vcpus)
    assert vcpus[0].registers[VIRTUAL_COUNTER] == 77
