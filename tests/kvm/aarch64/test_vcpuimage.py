"""A vCPU's state by its registers: all of them, whatever their size, in the order that KVM wants, and what is none is refused."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.errors import KvmError, SnapshotError
from aiovmm.kvm.aarch64 import vcpuimage
from aiovmm.kvm.aarch64.registers import COUNTERS, PC, VECTOR_LENGTHS, VIRTUAL_COUNTER, size_of, x
from aiovmm.kvm.aarch64.vcpuimage import VcpuImage, read_vcpu
from aiovmm.native import ffi
from aiovmm.runtime.plain import Fields

VECTOR = 0x6080_0000_0015_0000  # z0, of 2,048 bits
IDENTITY = 0x6030_0000_0013_C000  # MIDR_EL1, which nobody sets
SMALL = 0x6020_0000_0010_00D4  # fpsr, of 32 bits
GET_MP, SET_MP, GET_EVENTS, SET_EVENTS = range(4)


class FakeVcpu:
    """As far as it is looked at. `registers` by number, of which nobody can set those in `fixed`."""

    index = 1

    def __init__(self, registers: dict[int, bytes], fixed: tuple[int, ...] = ()) -> None:
        self.registers = registers
        self.fixed = fixed
        self.mp_state = 0
        self.events = bytes(64)
        self.set: list[int] = []

    def checked_fd(self) -> FakeVcpu:
        """Itself, for try_call."""
        return self

    def ioctl(self, request: int, argument: Any, _operation: str) -> int:
        """See Vcpu."""
        if request == GET_MP:
            argument.mp_state = self.mp_state
        elif request == SET_MP:
            self.mp_state = int(argument.mp_state)
        elif request == GET_EVENTS:
            ffi.buffer(argument)[:] = self.events
        else:
            self.events = bytes(ffi.buffer(argument))
        return 0


class FakeRegisters:
    """See registers.Registers."""

    def __init__(self, vcpu: Any) -> None:
        self._vcpu = vcpu

    def listed(self) -> list[int]:
        """All numbers."""
        return list(self._vcpu.registers)

    def read(self, number: int) -> bytes:
        """One of them."""
        if number not in self._vcpu.registers:
            raise KvmError("reading", errno.ENOENT)
        value: bytes = self._vcpu.registers[number]
        return value

    def write(self, number: int, data: bytes) -> None:
        """Likewise."""
        if number not in self._vcpu.registers or number in self._vcpu.fixed:
            raise KvmError(f"setting register {number:#x}", errno.EINVAL)
        self._vcpu.set.append(number)
        self._vcpu.registers[number] = data


@pytest.fixture(autouse=True)
def kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"KVM_GET_MP_STATE": GET_MP, "KVM_SET_MP_STATE": SET_MP}
    names |= {"KVM_GET_VCPU_EVENTS": GET_EVENTS, "KVM_SET_VCPU_EVENTS": SET_EVENTS}
    monkeypatch.setattr(vcpuimage, "lib", SimpleNamespace(**names))
    monkeypatch.setattr(vcpuimage, "Registers", FakeRegisters)
    monkeypatch.setattr(vcpuimage, "try_call", lambda vcpu, request, argument: vcpu.ioctl(request, argument, ""))


def filled(**changes: Any) -> Any:
    numbers = [x(0), x(30), PC, SMALL, VECTOR, VECTOR_LENGTHS, IDENTITY, *COUNTERS]
    registers = {number: bytes(at + 1 for _ in range(size_of(number))) for at, number in enumerate(numbers)}
    return FakeVcpu(registers, **changes)


def empty(**changes: Any) -> Any:
    """With what nobody can set as it is in `filled`."""
    vcpu = filled(**changes)
    vcpu.registers = {n: data if n == IDENTITY else bytes(len(data)) for n, data in vcpu.registers.items()}
    return vcpu


def image_of(vcpu: Any) -> VcpuImage:
    return VcpuImage.read(Fields(read_vcpu(vcpu), "vcpu"))


def test_sizes_are_in_their_numbers() -> None:
    assert [size_of(number) for number in (SMALL, PC, VECTOR, VECTOR_LENGTHS)] == [4, 8, 256, 64]


def test_all_registers_come_back_but_those_that_have_their_own_time() -> None:
    there, here = filled(), empty(fixed=(IDENTITY,))
    there.mp_state, there.events = 5, bytes(range(64))
    image = image_of(there)
    image.put(here)
    assert (here.mp_state, here.events) == (5, bytes(range(64)))
    late = {VECTOR_LENGTHS, *COUNTERS}
    assert {n: d for n, d in here.registers.items() if n not in late} == {
        n: d for n, d in there.registers.items() if n not in late
    }
    assert not late & set(here.set)
    assert image.vector_lengths == there.registers[VECTOR_LENGTHS]
    image.put_counters(here, 1000)
    shown = int.from_bytes(here.registers[VIRTUAL_COUNTER], "little")
    assert shown == int.from_bytes(there.registers[VIRTUAL_COUNTER], "little") + 1000
    assert here.set[-len(COUNTERS) :] == list(COUNTERS)


def test_a_counter_goes_round() -> None:
    there, here = filled(), empty()
    there.registers[VIRTUAL_COUNTER] = b"\xff" * 8
    image_of(there).put_counters(here, 3)
    assert here.registers[VIRTUAL_COUNTER] == (2).to_bytes(8, "little")


def test_what_is_otherwise_here_and_cannot_be_set_is_named() -> None:
    here = empty(fixed=(IDENTITY,))
    here.registers[IDENTITY] = bytes(8)
    with pytest.raises(SnapshotError, match=rf"refuses 0x7070.* in register {IDENTITY:#x} .*same processor"):
        image_of(filled()).put(here)


def test_a_register_that_there_is_none_of_here_is_named() -> None:
    here = empty()
    del here.registers[VECTOR]
    with pytest.raises(SnapshotError, match=f"register {VECTOR:#x}"):
        image_of(filled()).put(here)


def test_a_kvm_that_cannot_tell_of_exceptions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vcpuimage, "try_call", lambda *_: -errno.EINVAL)
    image = image_of(filled())
    assert image.events is None
    here = empty()
    here.events = b"untouched"
    image.put(here)
    assert here.events == b"untouched"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mp_state": 11}, "vcpu.mp_state is 11"),
        ({"registers": [[PC]]}, "list of 1"),
        ({"registers": [[PC, bytes(4)]]}, "bytes of 4, not 8 bytes"),
        ({"registers": [[0x2030_0000_0000_0000, bytes(8)]]}, "there is no register 0x2030"),
        ({"registers": [[0x60F0_0000_0010_0000, bytes(8)]]}, "there is no register 0x60f"),
        ({"registers": [[x(0), bytes(8)]] * 8193}, "8193"),
        ({"events": bytes(63)}, "64 bytes"),
        ({"more": 1}, "does not know: 'more'"),
    ],
)
def test_state_that_is_none(changes: dict[str, Any], message: str) -> None:
    state = read_vcpu(filled()) | changes
    with pytest.raises(SnapshotError, match=message):
        VcpuImage.read(Fields(state, "vcpu"))


@given(st.lists(st.tuples(st.integers(0, (1 << 64) - 1), st.binary(max_size=300)), max_size=4))
def test_any_registers_are_refused_or_kept(rows: list[tuple[int, bytes]]) -> None:
    state = {"mp_state": 0, "registers": [list(row) for row in rows], "events": None}
    try:
        image = VcpuImage.read(Fields(state, "vcpu"))
    except SnapshotError:
        return
    assert all(len(data) == size_of(number) for number, data in image.registers)
