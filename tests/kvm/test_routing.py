"""The table of interrupt routes, as KVM gets it: each route once after any changes; a refused one changes nothing."""

from __future__ import annotations

import errno
import random
import struct
from collections.abc import Callable
from typing import Any

import pytest

from aiovmm.errors import KvmError
from aiovmm.kvm import routing
from aiovmm.kvm.routing import GsiRouting
from aiovmm.native import ffi

PINS = 24


class FakeKvm:
    """Keeps the table that it was last given; refuses messages that it is told to."""

    def __init__(self) -> None:
        self.routes: dict[int, tuple[int, int]] = {}
        self.refuses: Callable[[int], bool] = lambda data: False
        self.rows: list[tuple[int, ...]] = []
        """struct kvm_irq_routing_entry: gsi, type, flags, pad, and eight words of which the type says what they are."""

    def call(self, fd: int, request: int, argument: Any, operation: str) -> int:
        table = bytes(ffi.buffer(argument))
        (count,) = struct.unpack_from("<I", table)
        rows = [struct.unpack_from("<12I", table, 8 + 48 * i) for i in range(count)]
        if any(self.refuses(row[6]) for row in rows):
            raise KvmError(operation, errno.EINVAL, "")
        assert len({row[0] for row in rows}) == count
        self.rows = rows
        self.routes = {row[0]: (row[5] << 32 | row[4], row[6]) for row in rows}
        return 0


@pytest.fixture
def kvm(monkeypatch: pytest.MonkeyPatch) -> FakeKvm:
    fake = FakeKvm()
    monkeypatch.setattr(routing, "call", fake.call)
    return fake


@pytest.mark.parametrize("seed", range(20))
def test_the_table_holds_what_was_set_and_not_cleared(kvm: FakeKvm, seed: int) -> None:
    rng = random.Random(seed)
    table, wanted = GsiRouting(0, PINS, 1024), dict[int, tuple[int, int]]()
    gsis = [*range(PINS), *(table.allocate() for _ in range(60))]
    for _ in range(300):
        gsi = rng.choice(gsis)
        if rng.random() < 0.4:
            table.clear(gsi)
            wanted.pop(gsi, None)
        else:
            wanted[gsi] = (rng.choice((0xFEE00000, 0x100_FEE00000)), rng.randrange(256))
            table.set_msi(gsi, *wanted[gsi])
        if rng.random() < 0.3:
            table.commit()
            assert kvm.routes == wanted


def test_a_refused_table_leaves_all_as_it_was(kvm: FakeKvm) -> None:
    table = GsiRouting(0, PINS, 1024)
    for gsi in range(3):
        table.set_msi(gsi, 0xFEE00000, gsi)
    table.commit()
    before = dict(kvm.routes)

    kvm.refuses = lambda data: data == 66
    table.clear(0)
    table.set_msi(1, 0xFEE00000, 55)
    table.set_msi(9, 0xFEE00000, 66)
    with pytest.raises(KvmError):
        table.commit()
    assert kvm.routes == before

    table.set_msi(10, 0xFEE00000, 10)
    table.commit()
    assert kvm.routes == {**before, 10: (0xFEE00000, 10)}


def test_nothing_is_given_without_a_change(kvm: FakeKvm) -> None:
    table = GsiRouting(0, PINS, 1024)
    table.set_msi(1, 0xFEE00000, 1)
    table.commit()
    kvm.refuses = lambda data: True
    table.set_msi(1, 0xFEE00000, 1)
    table.clear(2)
    table.commit()


def test_a_message_may_say_who_sends_it_and_a_route_lead_to_a_pin(kvm: FakeKvm) -> None:
    """Types, flags and places of Linux's <linux/kvm.h>."""
    table = GsiRouting(0, PINS, 1024)
    table.set_msi(1, 0x1_0807_0040, 7, device=0x210)
    table.set_msi(2, 0xFEE0_0000, 8)
    table.set_pin(3, 0, 35)
    table.commit()
    nothing = (0,) * 4
    assert kvm.rows == [
        (1, 2, 1, 0, 0x0807_0040, 1, 7, 0x210, *nothing),
        (2, 2, 0, 0, 0xFEE0_0000, 0, 8, 0, *nothing),
        (3, 1, 0, 0, 0, 35, 0, 0, *nothing),
    ]


def test_the_same_message_from_another_device_is_another_route(kvm: FakeKvm) -> None:
    table = GsiRouting(0, PINS, 1024)
    for device in (0x8, 0x10):
        table.set_msi(1, 0x0807_0040, 7, device)
        table.commit()
        assert kvm.rows[0][7] == device
