"""Memory of this process in a guest's view: the registers of host devices."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aiovmm.errors import KvmError
from aiovmm.kvm import Kvm, VmFd
from aiovmm.memory import GuestMemory
from aiovmm.native.mapping import Mapping


@pytest.fixture
def vm() -> Iterator[VmFd]:
    with Kvm.open() as kvm:
        vm = kvm.create_vm(1)
    yield vm
    vm.close()


@pytest.fixture
def registers() -> Iterator[Mapping]:
    """A page of this process."""
    mapping = Mapping(-1, 4096)
    yield mapping
    mapping.close()


def test_a_slot_can_be_moved_any_number_of_times(vm: VmFd, registers: Mapping) -> None:
    memory = GuestMemory.create([(0, 1 << 20)])
    vm.set_memory(memory)
    for n in range(40_000):  # more than KVM has slots
        vm.host_memory(0xC000_0000 + (n % 16 << 12), 4096, registers).close()
    second = GuestMemory.create([(0x20_0000, 1 << 20)])
    vm.set_memory(second)  # RAM finds its slots beside them
    memory.close()
    second.close()


def test_what_overlaps_is_refused_and_its_slot_is_free_again(vm: VmFd, registers: Mapping) -> None:
    slot = vm.host_memory(0xC000_0000, 4096, registers)
    for _ in range(3):
        with pytest.raises(KvmError, match="it overlaps another slot"):
            vm.host_memory(0xC000_0000, 4096, registers)
    slot.close()
    slot.close()
    vm.host_memory(0xC000_0000, 4096, registers).close()
