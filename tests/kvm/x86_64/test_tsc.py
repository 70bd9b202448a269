"""A guest's time-stamp counters are one clock, however long it takes to read and to set them one after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from aiovmm.kvm import Kvm
from aiovmm.kvm.x86_64 import msrs, tsc, vcpuimage
from aiovmm.kvm.x86_64.vcpustate import VcpuState

TSC = 0x10
KHZ = 1_000_000
WORD = 1 << 64


class FakeHost:
    """A KVM whose vCPUs' counters are the host's, which shows `now`, and an offset each, their file descriptors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, offsets: list[int], tells: bool = True) -> None:
        self.now = 5_000
        self.offsets = offsets
        self.vcpus: list[Any] = [SimpleNamespace(checked_fd=lambda fd=fd: fd) for fd in range(len(offsets))]
        monkeypatch.setattr(tsc, "has_attribute", lambda *_: tells)
        monkeypatch.setattr(tsc, "get_attribute", self._get)
        monkeypatch.setattr(tsc, "set_attribute", self._set)
        monkeypatch.setattr(vcpuimage, "msrs", SimpleNamespace(get=self._get_msrs))

    def _get(self, fd: int, group: int, attribute: int, value: Any, _what: str) -> None:
        assert (group, attribute) == (0, 0)
        value[0] = self.offsets[fd] % WORD

    def _set(self, fd: int, group: int, attribute: int, value: Any, _what: str) -> None:
        assert (group, attribute) == (0, 0)
        self.offsets[fd] = int(value[0])

    def _get_msrs(self, fd: int, indices: list[int]) -> dict[int, int]:
        assert indices == [TSC]
        self.now += 3_000_000 * KHZ  # an hour or so later
        return {TSC: (self.now + self.offsets[fd]) % WORD}


def saved(count: int) -> list[dict[str, Any]]:
    return [{"msrs": [[0x11, 7], [TSC, 0]]} for _ in range(count)]


@pytest.mark.parametrize("apart", [0, 70, -70, -(1 << 62)])
def test_all_are_read_at_one_moment(apart: int, monkeypatch: pytest.MonkeyPatch) -> None:
    host, states = FakeHost(monkeypatch, [100, 100 + apart]), saved(2)
    vcpuimage.read_counters(host.vcpus, states)
    (_, first), (_, second) = (dict(map(tuple, state["msrs"])).items() for state in states)
    assert (second[1] - first[1] - apart) % WORD == 0


def test_where_kvm_does_not_tell_they_are_as_they_were_read(monkeypatch: pytest.MonkeyPatch) -> None:
    host, states = FakeHost(monkeypatch, [0, 0], tells=False), saved(2)
    vcpuimage.read_counters(host.vcpus, states)
    assert [state["msrs"][1][1] for state in states] == [5_000 + n * 3_000_000 * KHZ for n in (1, 2)]


@pytest.mark.parametrize(
    ("values", "offsets"),
    [
        ([1000, 1000, 1070], [5, 5, 5]),  # which differ by when they were read
        ([1000, 1000 + 2000 * KHZ, 1000], [5, 77, 5]),  # the guest has set one of them to what it likes
        ([10, WORD - 10, 10], [5, 5, 5]),
    ],
)
def test_those_that_show_the_same_agree(values: list[int], offsets: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    host = FakeHost(monkeypatch, [5, 77, 123_456])
    tsc.agree(host.vcpus, values, KHZ)
    assert host.offsets == offsets


def test_nothing_is_set_where_kvm_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    host = FakeHost(monkeypatch, [1, 2, 3], tells=False)
    tsc.agree(host.vcpus, [9] * 3, KHZ)
    assert host.offsets == [1, 2, 3]


@pytest.fixture
def pair(kvm: Kvm) -> Iterator[Any]:
    vm = kvm.create_vm(2)
    yield [vm.create_vcpu(0), vm.create_vcpu(1)]
    vm.close()


@pytest.mark.kvmhost
@pytest.mark.thorough
def test_a_real_kvm_has_them_agree_after_more_than_a_second(pair: Any) -> None:
    """The machine's own, which emulates, keeps no counters."""
    value = 1 << 40
    for vcpu in pair:
        assert msrs.try_set(vcpu.checked_fd(), [(TSC, value)]) == 1
        time.sleep(1.2)  # what a busy host may take: more than KVM forgives
    before = tsc.offsets(pair)
    assert before is not None
    assert before[0] != before[1]
    tsc.agree(pair, [value, value], VcpuState(pair[0]).get_tsc_khz() or 0)
    assert tsc.offsets(pair) == [before[0]] * 2
