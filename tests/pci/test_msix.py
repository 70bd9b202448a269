"""MSI-X: masks, pending bits and what is delivered when."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.errors import UsageError
from aiovmm.pci.msix import Deliver, MsixTable, Route

ADDRESS, DATA = 0xFEE01000, 0x4041


def program(table: MsixTable, index: int, *, masked: bool = False) -> list[Route | Deliver]:
    effects = table.write_table(16 * index, struct.pack("<Q", ADDRESS))
    effects += table.write_table(16 * index + 8, struct.pack("<I", DATA))
    return effects + table.write_table(16 * index + 12, struct.pack("<I", masked))


def test_after_reset_every_vector_is_masked() -> None:
    table = MsixTable(3)
    assert bytes(table.table) == (bytes(12) + b"\1\0\0\0") * 3
    assert len(table.pending) == 8


def test_a_programmed_vector_is_routed_when_msix_is_enabled() -> None:
    table = MsixTable(2)
    assert program(table, 1) == [], "MSI-X is off: nothing to route yet"
    assert table.set_control(enabled=True, masked=False) == [Route(1, ADDRESS, DATA, masked=False)]
    assert table.trigger(1)
    assert not table.trigger(0)


def test_linux_enables_with_all_masked_and_opens_last() -> None:
    table = MsixTable(2)
    assert table.set_control(enabled=True, masked=True) == []
    assert program(table, 0) == []
    assert table.set_control(enabled=True, masked=False) == [Route(0, ADDRESS, DATA, masked=False)]


def test_an_interrupt_while_masked_is_pending_and_delivered_once() -> None:
    table = MsixTable(70)
    table.set_control(enabled=True, masked=False)
    program(table, 69)
    assert table.write_table(69 * 16 + 12, b"\1\0\0\0") == [Route(69, ADDRESS, DATA, masked=True)]
    assert not table.trigger(69)
    assert not table.trigger(69)
    assert table.pending[8] == 1 << 5
    assert table.write_table(69 * 16 + 12, bytes(4)) == [Route(69, ADDRESS, DATA, masked=False), Deliver(69)]
    assert not any(table.pending)


def test_the_function_mask_holds_all_vectors() -> None:
    table = MsixTable(2)
    table.set_control(enabled=True, masked=False)
    program(table, 0)
    program(table, 1)
    table.set_control(enabled=True, masked=True)
    assert not table.trigger(1)
    assert table.pending[0] == 2
    effects = table.set_control(enabled=True, masked=False)
    assert [e for e in effects if isinstance(e, Deliver)] == [Deliver(1)]


def test_disabling_drops_what_is_pending() -> None:
    table = MsixTable(1)
    table.set_control(enabled=True, masked=True)
    program(table, 0)
    table.trigger(0)
    table.set_control(enabled=False, masked=False)
    assert not any(table.pending)
    assert not table.trigger(0)
    assert Deliver(0) not in table.set_control(enabled=True, masked=False)


def test_reprogramming_an_open_vector_moves_its_route() -> None:
    table = MsixTable(1)
    table.set_control(enabled=True, masked=False)
    program(table, 0)
    assert table.write_table(8, struct.pack("<I", 0x55)) == [Route(0, ADDRESS, 0x55, masked=False)]
    assert table.write_table(8, struct.pack("<I", 0x55)) == []


def test_an_8_byte_write_sets_data_and_control_together() -> None:
    table = MsixTable(1)
    table.set_control(enabled=True, masked=False)
    table.write_table(0, struct.pack("<Q", ADDRESS))
    assert table.write_table(8, struct.pack("<II", DATA, 0)) == [Route(0, ADDRESS, DATA, masked=False)]


def test_reserved_control_bits_read_as_zero() -> None:
    table = MsixTable(1)
    table.write_table(12, b"\xff" * 4)
    assert table.table[12:16] == b"\1\0\0\0"


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (0, 2), (2, 4), (4, 8), (16, 4), (-4, 4)])
def test_accesses_that_the_specification_leaves_open_are_dropped(offset: int, size: int) -> None:
    table = MsixTable(1)
    before = bytes(table.table)
    assert table.write_table(offset, b"\xff" * size) == []
    assert bytes(table.table) == before


@pytest.mark.parametrize("vectors", [0, 2049])
def test_table_sizes_are_bounded(vectors: int) -> None:
    with pytest.raises(UsageError):
        MsixTable(vectors)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("table"), st.integers(0, 63), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1)),
            st.tuples(st.just("control"), st.booleans(), st.booleans(), st.none()),
            st.tuples(st.just("trigger"), st.integers(0, 3), st.none(), st.none()),
        ),
        max_size=60,
    )
)
def test_no_interrupt_is_lost_or_sent_through_a_mask(steps: list[tuple[str, int, int, int]]) -> None:
    """A model: each vector's pending interrupt is a flag; effects must agree with it at every step."""
    table = MsixTable(4)
    waiting: set[int] = set()
    for kind, a, b, c in steps:
        effects: list[Route | Deliver] = []
        if kind == "table":
            effects = table.write_table(a, (c & (1 << 8 * b) - 1).to_bytes(b, "little"))
        elif kind == "control":
            effects = table.set_control(enabled=bool(a), masked=bool(b))
        elif table.trigger(a):
            assert not table.route(a).masked
        elif table.enabled:
            assert table.route(a).masked
            waiting.add(a)
        if not table.enabled:
            waiting.clear()
        delivered = {e.index for e in effects if isinstance(e, Deliver)}
        assert delivered == {i for i in waiting if not table.route(i).masked}
        waiting -= delivered
        assert {i for i in range(4) if table.pending[0] >> i & 1} == waiting
