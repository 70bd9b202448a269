"""What vCPUs are asked to have, and in which order: features, vector lengths, performance counters, the width of addresses."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest

from aiovmm.errors import KvmError
from aiovmm.kvm.aarch64 import features, host, pmu
from aiovmm.kvm.aarch64.features import VcpuFeatures, reset
from aiovmm.kvm.aarch64.registers import VECTOR_LENGTHS
from aiovmm.native import ffi

POWER_OFF, PSCI, PMU, SVE, PTRAUTH = 1 << 0, 1 << 2, 1 << 3, 1 << 4, 1 << 5 | 1 << 6
TARGET = 5
CAP_PMU, CAP_SVE, CAP_PTRAUTH_ADDRESS, CAP_PTRAUTH_GENERIC, CAP_IPA_SIZE = 126, 170, 171, 172, 165


class FakeVcpu:
    """As a vCPU of KVM's: it has to be initialized first, its vector lengths are fixed once, and then cannot be set."""

    def __init__(self, log: list[Any]) -> None:
        self.log = log
        self.refusal = errno.EPERM
        self._fixed = False

    def ioctl(self, request: str, argument: Any, operation: str) -> int:
        """See Vcpu."""
        if request == "init":
            assert argument.target == TARGET, "what KVM prefers"
            self.log.append(("init", argument.features[0]))
            return 0
        assert (request, argument) == ("finalize", 4)
        if self._fixed:
            raise KvmError(operation, self.refusal)
        self._fixed = True
        self.log.append("finalize")
        return 0


class FakeRegisters:
    """See registers.Registers."""

    def __init__(self, vcpu: FakeVcpu) -> None:
        self._vcpu = vcpu

    def write(self, number: int, data: bytes) -> None:
        """Of one register alone."""
        assert number == VECTOR_LENGTHS
        self._vcpu.log.append(data)


@pytest.fixture(autouse=True)
def arm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Structures and numbers that the extension has on arm64 alone."""
    names = {"KVM_ARM_PREFERRED_TARGET": "target", "KVM_ARM_VCPU_INIT": "init", "KVM_ARM_VCPU_FINALIZE": "finalize"}

    def new(kind: str, value: Any = None) -> Any:
        return SimpleNamespace(target=0, features=[0] * 7) if kind == "struct kvm_vcpu_init *" else value

    def call(_fd: int, request: str, argument: Any, _operation: str) -> int:
        assert request == "target"
        argument.target = TARGET
        return 0

    monkeypatch.setattr(features, "lib", SimpleNamespace(**names, KVM_CHECK_EXTENSION="check"))
    monkeypatch.setattr(features, "ffi", SimpleNamespace(new=new))
    monkeypatch.setattr(features, "call", call)
    monkeypatch.setattr(features, "Registers", FakeRegisters)


def logs(wanted: VcpuFeatures, times: int = 1, lengths: bytes | None = None) -> list[list[Any]]:
    """What each of two vCPUs is told when they are reset so many times."""
    told: list[list[Any]] = [[], []]
    vm: Any = SimpleNamespace(fd=3)
    vcpus: list[Any] = [FakeVcpu(log) for log in told]
    for _ in range(times):
        reset(vm, vcpus, wanted, lengths)
    return told


def test_all_but_the_first_wait_to_be_started() -> None:
    assert logs(VcpuFeatures()) == [[("init", PSCI)], [("init", PSCI | POWER_OFF)]]


def test_vector_lengths_are_fixed_after_the_features_are_asked_for() -> None:
    wanted = VcpuFeatures(pmu=True, sve=True, pointer_authentication=True)
    bits = PSCI | PMU | SVE | PTRAUTH
    assert logs(wanted) == [[("init", bits), "finalize"], [("init", bits | POWER_OFF), "finalize"]]


def test_those_of_a_saved_guest_are_set_before_they_are_fixed() -> None:
    lengths = bytes(range(64))
    first, _ = logs(VcpuFeatures(sve=True), lengths=lengths)
    assert first == [("init", PSCI | SVE), lengths, "finalize"]


def test_a_reset_finds_them_fixed() -> None:
    first, _ = logs(VcpuFeatures(sve=True), times=2)
    assert first == [("init", PSCI | SVE), "finalize", ("init", PSCI | SVE)]


def test_another_refusal_is_an_error() -> None:
    vm: Any = SimpleNamespace(fd=3)
    vcpu: Any = FakeVcpu([])
    vcpu.refusal = errno.EINVAL
    reset(vm, [vcpu], VcpuFeatures(sve=True))
    with pytest.raises(KvmError, match="fixing the vector length"):
        reset(vm, [vcpu], VcpuFeatures(sve=True))


@pytest.mark.parametrize(
    ("there", "found"),
    [
        ((), VcpuFeatures()),
        ((CAP_PMU,), VcpuFeatures(pmu=True)),
        ((CAP_SVE,), VcpuFeatures(sve=True)),
        ((CAP_PTRAUTH_ADDRESS,), VcpuFeatures()),
        ((CAP_PTRAUTH_GENERIC,), VcpuFeatures()),
        ((CAP_PTRAUTH_ADDRESS, CAP_PTRAUTH_GENERIC), VcpuFeatures(pointer_authentication=True)),
    ],
)
def test_guests_have_what_the_host_has(
    there: tuple[int, ...], found: VcpuFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "try_call", lambda _fd, _request, number: int(number in there))
    assert VcpuFeatures.of(3) == found


def test_counters_interrupt_by_a_number_of_each_processors_own(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int, int, int | None]] = []

    def set_attribute(fd: int, group: int, attribute: int, value: Any, _operation: str) -> None:
        told.append((fd, group, attribute, None if value is None else int(ffi.cast("int *", value)[0])))

    monkeypatch.setattr(pmu, "set_attribute", set_attribute)
    vcpus: list[Any] = [SimpleNamespace(index=n, checked_fd=lambda fd=fd: fd) for n, fd in enumerate((7, 9))]
    pmu.set_up(vcpus, 7)
    assert told == [(7, 0, 0, 23), (7, 0, 1, None), (9, 0, 0, 23), (9, 0, 1, None)]


@pytest.mark.parametrize(
    ("said", "bits", "kind"),
    [
        (48, 48, 48),
        (44, 44, 44),  # a Cortex-A72
        (40, 40, 40),
        (52, 48, 48),  # which takes pages of 64 KiB
        (0, 40, 0),  # from before Linux 4.20
        (-errno.EINVAL, 40, 0),
    ],
)
def test_addresses_are_as_wide_as_the_host_has_them(
    said: int, bits: int, kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def try_call(_fd: int, _request: int, number: int) -> int:
        assert number == CAP_IPA_SIZE
        return said

    monkeypatch.setattr(host, "try_call", try_call)
    assert (host.address_bits(3), host.vm_type(3)) == (bits, kind)
