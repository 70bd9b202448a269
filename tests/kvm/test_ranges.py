"""The bus's ranges as native code has them: a change costs what has changed, however many ranges there are."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from aiovmm.bus import FastPage, Range, Space
from aiovmm.kvm import Kvm, ranges
from aiovmm.native import ffi

pytestmark = pytest.mark.kvm


def make(bases: Sequence[int], space: Space) -> list[Range]:
    device = SimpleNamespace()
    return [Range(space, b, 0x10, device, f"{b:#x}", FastPage(0x10) if b & 0x100 else None) for b in bases]


def test_only_what_is_new_is_made(kvm: Kvm, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    real = ranges._Cells.__init__

    def noted(self: ranges._Cells, rng: Range, *where: Any) -> None:
        made.append(rng.name)
        real(self, rng, *where)

    monkeypatch.setattr(ranges._Cells, "__init__", noted)
    ports, pages = make(range(0, 0x800, 0x100), Space.PIO), make(range(0x1000, 0x9000, 0x80), Space.MMIO)
    with contextlib.closing(kvm.create_vm(1)) as vm:
        vm.publish(ports + pages)
        made.clear()
        vm.publish(ports + pages[:100] + pages[103:])
        assert made == []
        vm.publish(ports + pages)
        assert made == [r.name for r in pages[100:103]]


def test_the_table_says_what_the_bus_does(kvm: Kvm) -> None:
    ports, pages = make((0x60, 0x170), Space.PIO), make((0x1000, 0x1100), Space.MMIO)
    assert ports[1].fast is not None
    ports[1].fast.ecam = 0xE000_0000
    with contextlib.closing(kvm.create_vm(1)) as vm:
        vm.publish(ports + pages)
        vm.publish(ports[1:] + pages)
        table = vm._ranges._current
        assert list(table.count) == [1, 2]
        for space, expected in ((0, ports[1:]), (1, pages)):
            for index, rng in enumerate(expected):
                entry = table.ranges[space][index]
                assert (entry.base, entry.size) == (rng.base, rng.size)
                assert entry.ecam == (0xE000_0000 if rng is ports[1] else 0)
                if rng.fast is None:
                    assert entry.policy == entry.shadow == ffi.NULL
                else:
                    rng.fast.policy[3], rng.fast.shadow[4] = 5, 6
                    assert (entry.policy[3], entry.shadow[4]) == (5, 6)
