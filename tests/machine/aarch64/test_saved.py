"""What an arm64 host must have to go on with a guest: the features that it was shown, and a counter that counts as fast."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from aiovmm.config import CpusConfig
from aiovmm.errors import SnapshotError
from aiovmm.kvm.aarch64.clock import GuestCounter
from aiovmm.kvm.aarch64.features import VcpuFeatures
from aiovmm.machine.aarch64 import saved
from aiovmm.machine.aarch64.saved import Processors
from aiovmm.machine.moment import Moment
from aiovmm.machine.restored import Restored
from tests.kvm.aarch64.test_gicstate import gic, told_apart

HZ = 62_500_000
ALL = VcpuFeatures(pmu=True, sve=True, pointer_authentication=True)


@pytest.fixture(autouse=True)
def counter(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    lib = SimpleNamespace(hz=HZ)
    monkeypatch.setattr(saved, "lib", SimpleNamespace(avmm_counter_hz=lambda: lib.hz))
    monkeypatch.setattr(saved, "read_vcpu", lambda _: {"mp_state": 0, "registers": [], "events": None})
    monkeypatch.setattr(saved, "affinities", lambda vcpus: tuple(range(len(vcpus))))
    return lib


def restored(features: VcpuFeatures = ALL, vcpus: int = 2, stood: int | None = None) -> Restored:
    vm: Any = [None] * vcpus
    state = saved.save_processors(vm, features, gic(told_apart), GuestCounter(stood))
    return Restored({"board": {"address_bits": 40, "processors": state}}, lambda _: pytest.fail("it asks for memory"))


def read(what: Restored, here: VcpuFeatures = ALL, vcpus: int = 2) -> Processors:
    return Processors.of(what, CpusConfig(vcpus), here)


def test_a_guest_has_the_features_that_it_had() -> None:
    had = VcpuFeatures(pmu=True)
    assert read(restored(had)).features == had, "and not what this host has besides"
    one = restored()
    assert read(one) is read(one), "it is read once"


@pytest.mark.parametrize(
    ("here", "message"),
    [
        (VcpuFeatures(pmu=True), "it lacks SVE, pointer authentication; restore it where they are"),
        (VcpuFeatures(sve=True, pointer_authentication=True), "it lacks performance counters"),
    ],
)
def test_a_host_that_lacks_some_is_refused(here: VcpuFeatures, message: str) -> None:
    with pytest.raises(SnapshotError, match=message):
        read(restored(), here)


def test_a_counter_of_another_frequency_is_refused(counter: SimpleNamespace) -> None:
    there = restored()
    counter.hz = 25_000_000
    with pytest.raises(SnapshotError, match="a counter of 62500000 Hz, and this host's has 25000000"):
        read(there)


def test_as_many_processors_as_the_configuration_says() -> None:
    with pytest.raises(SnapshotError, match="list of 2"):
        read(restored(vcpus=2), vcpus=3)


def test_addresses_reach_as_far_as_they_did() -> None:
    assert restored().address_bits(48) == 40
    with pytest.raises(SnapshotError, match="40 bits of physical addresses, and this host has 36"):
        restored().address_bits(36)


def test_counters_are_ahead_by_what_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    processors = read(restored(vcpus=1), vcpus=1)
    put: list[Any] = []
    image = SimpleNamespace(put=lambda vcpu: put.append(vcpu), put_counters=lambda vcpu, ticks: put.append(ticks))
    monkeypatch.setattr(Moment, "passed_ns", lambda _: 2_000_000_000)
    one = Processors(processors.features, processors.moment, HZ, None, (image,), processors.gic)  # type: ignore[arg-type]
    vcpu: Any = object()
    one.put([vcpu], gic())
    assert put == [vcpu, 2 * HZ]


@pytest.mark.parametrize("stood", [None, 0, 1 << 63])
def test_a_counter_that_stood_is_told_of(stood: int | None) -> None:
    assert read(restored(stood=stood)).stood == stood
