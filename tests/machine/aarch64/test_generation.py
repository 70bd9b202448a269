"""What says which machine it is: other bytes in each, and an interrupt that is an edge."""

from __future__ import annotations

import mmap
from typing import Any

import pytest

from aiovmm.machine.aarch64 import generation
from aiovmm.machine.aarch64.generation import VmGeneration
from aiovmm.native.mapping import Mapping


class Line:
    """Remembers levels."""

    def __init__(self, _vm: Any, number: int) -> None:
        self.number = number
        self.levels: list[bool] = []

    def set_level(self, level: bool) -> None:
        """See SpiLine."""
        self.levels.append(level)


class Vm:
    """Remembers what the guest sees."""

    def __init__(self) -> None:
        self.seen: dict[int, bytes] = {}
        self.dropped = 0

    def host_memory(self, gpa: int, size: int, mapping: Mapping) -> Vm:
        """See VmFd; it is its own slot."""
        self.seen[gpa] = bytes(mapping[:size])
        return self

    def drop(self) -> None:
        """See HostMemorySlot."""
        self.dropped += 1


@pytest.fixture(autouse=True)
def lines(monkeypatch: pytest.MonkeyPatch) -> list[Line]:
    made: list[Line] = []

    def line(vm: Any, number: int) -> Line:
        made.append(Line(vm, number))
        return made[-1]

    monkeypatch.setattr(generation, "SpiLine", line)
    return made


def test_each_machine_has_another(lines: list[Line]) -> None:
    vms: list[Any] = [Vm(), Vm()]
    machines = [VmGeneration(vm) for vm in vms]
    pages = [vm.seen[0x09030000] for vm in vms]
    assert [len(page) for page in pages] == [mmap.PAGESIZE] * 2
    assert pages[0][:16] != pages[1][:16]
    assert not any(page[16:].strip(b"\0") for page in pages)
    machines[0].tell()
    assert [(line.number, line.levels) for line in lines] == [(2, [True, False]), (2, [])]
    for machine in machines:
        machine.close()
    assert [vm.dropped for vm in vms] == [1, 1]
