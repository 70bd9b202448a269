"""What a guest sees of a host device's configuration space, and what its writes can do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aiovmm.vfio.virtual_config import VirtualConfig
from tests.vfio.kernel import PENDING, TABLE, config_space

SIZES = (0x4000, 0, 0x100, 0x20, 0, 0)
SHOWN = {0x01, 0x05, 0x11, 0x10, 0x09, 0x03}


def chain(space: bytes) -> dict[int, int]:
    """Capability id -> offset, as a driver finds them. Raises AssertionError for a chain that is none."""
    found: dict[int, int] = {}
    offset, steps = space[0x34], 0
    while offset:
        assert 0x40 <= offset < 0x100
        assert offset % 4 == 0
        found.setdefault(space[offset], offset)
        offset, steps = space[offset + 1], steps + 1
        assert steps <= 48
    assert bool(found) == bool(space[6] & 0x10)
    return found


def test_identity_is_the_devices_and_intx_is_not_there() -> None:
    space = VirtualConfig(config_space(), SIZES).space.data
    assert space[:4] == config_space()[:4]
    assert space[8:12] == config_space()[8:12]
    assert space[0x2C:0x30] == config_space()[0x2C:0x30]
    assert space[0x0E] == 0  # one function, whatever it was part of
    assert space[0x3D] == 0


def test_memory_bars_are_ours_to_place_and_io_bars_are_gone() -> None:
    virtual = VirtualConfig(config_space(), SIZES)
    assert [(bar.index, bar.size) for bar in virtual.bars] == [(0, 0x4000), (2, 0x100)]
    for bar in virtual.bars:
        bar.install(virtual.space)
    virtual.write(0x10, b"\xff" * 4)
    assert virtual.space.read(0x10, 4) == (0xFFFF_C004).to_bytes(4, "little")
    virtual.write(0x1C, b"\xff" * 4)
    assert virtual.space.read(0x1C, 4) == bytes(4)


def test_capabilities_keep_their_offsets_and_unknown_ones_are_unlinked() -> None:
    found = chain(bytes(VirtualConfig(config_space(), SIZES).space.data))
    assert found == {0x01: 0x40, 0x05: 0x50, 0x11: 0x70, 0x10: 0x80, 0x09: 0xD0}


def test_the_msix_structures_are_where_the_device_has_them() -> None:
    layout = VirtualConfig(config_space(msix=8), SIZES).msix
    assert layout is not None
    assert (layout.vectors, layout.table, layout.pending) == (8, (0, TABLE), (0, PENDING))


def test_msix_structures_that_lie_in_no_bar_or_in_each_other_are_not_shown() -> None:
    for table, pending in ((0x8000, PENDING), (1, PENDING), (TABLE, TABLE), (TABLE | 3, PENDING)):
        host = bytearray(config_space())
        host[0x74:0x78], host[0x78:0x7C] = table.to_bytes(4, "little"), pending.to_bytes(4, "little")
        virtual = VirtualConfig(bytes(host), SIZES)
        assert virtual.msix is None
        assert 0x11 not in chain(bytes(virtual.space.data))


def test_the_power_state_is_stored_and_stays_ours() -> None:
    virtual = VirtualConfig(config_space(), SIZES)
    assert virtual.write(0x44, b"\x03\x80") == ([], False)
    assert virtual.space.read(0x44, 2) == b"\x0b\x00"  # D3hot, and No_Soft_Reset


def test_an_endpoint_is_an_integrated_one() -> None:
    virtual = VirtualConfig(config_space(), SIZES)
    device = config_space()
    for offset, size in ((0x80, 4), (0x82, 2), (0x82, 1), (0x80, 8)):
        seen = virtual.overlay(offset, virtual.space.read(offset, size), device[offset : offset + size])
        assert seen[0x82 - offset] == 0x92


def test_the_devices_own_registers_are_read_from_it() -> None:
    virtual = VirtualConfig(config_space(), SIZES)
    ours, device = virtual.space.read(0x84, 4), b"\xde\xad\xbe\xef"
    assert virtual.overlay(0x84, ours, device) == device
    assert virtual.overlay(0xD0, virtual.space.read(0xD0, 4), device)[:2] == b"\x09\x00"


def test_a_function_level_reset_is_taken_out_of_what_is_written() -> None:
    virtual = VirtualConfig(config_space(), SIZES)
    writes, reset = virtual.write(0x88, b"\x10\xa8")
    assert reset
    assert [(w.offset, w.data) for w in writes] == [(0x88, b"\x10\x28")]
    writes, reset = virtual.write(0x88, b"\x10\x28")
    assert not reset


def test_msi_data_carries_the_vector_in_its_low_bits() -> None:
    msi = (virtual := VirtualConfig(config_space(), SIZES)).msi
    assert msi is not None
    assert msi.vectors == 0
    virtual.write(0x54, (0xFEE0_1000).to_bytes(4, "little"))
    virtual.write(0x58, (2).to_bytes(4, "little"))
    virtual.write(0x5C, (0x4047).to_bytes(2, "little"))
    virtual.write(0x60, (0b10).to_bytes(4, "little"))
    virtual.write(0x52, (0x0021).to_bytes(2, "little"))  # on, 4 vectors
    assert msi.vectors == 4
    messages = [msi.message(n) for n in range(4)]
    assert [(m.address, m.data, m.masked) for m in messages] == [
        (0x2_FEE0_1000, 0x4044, False),
        (0x2_FEE0_1000, 0x4045, True),
        (0x2_FEE0_1000, 0x4046, False),
        (0x2_FEE0_1000, 0x4047, False),
    ]


def test_a_guest_that_asks_for_more_vectors_than_there_are_gets_those() -> None:
    msi = (virtual := VirtualConfig(config_space(), SIZES)).msi
    assert msi is not None
    virtual.write(0x52, (0x0071).to_bytes(2, "little"))
    assert msi.vectors == 8


def _changed(changes: list[tuple[int, int]]) -> bytes:
    space = bytearray(config_space())
    for offset, value in changes:
        space[offset] = value
    return bytes(space)


changes = st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), max_size=24)
host_spaces = st.one_of(st.binary(min_size=256, max_size=256), changes.map(_changed))
bar_sizes = st.lists(st.sampled_from([0, 0x10, 0x100, 0x1000, 0x4000, 1 << 20]), min_size=6, max_size=6)


@given(host_spaces, bar_sizes)
def test_whatever_a_device_says_the_guest_gets_a_chain_of_known_capabilities(host: bytes, sizes: list[int]) -> None:
    virtual = VirtualConfig(host, sizes)
    assert set(chain(bytes(virtual.space.data))) <= SHOWN
    taken: set[int] = set()
    for start, size in virtual.live:
        assert start >= 0x40
        assert start + size <= 0x100
        assert taken.isdisjoint(range(start, start + size))
        taken |= set(range(start, start + size))


@given(
    host_spaces,
    bar_sizes,
    st.lists(st.tuples(st.integers(0, 4100), st.binary(min_size=1, max_size=8)), max_size=40),
)
def test_no_write_changes_what_the_guest_may_not_change(
    host: bytes, sizes: list[int], accesses: list[tuple[int, bytes]]
) -> None:
    virtual = VirtualConfig(host, sizes)
    before = bytes(virtual.space.data)
    live = {n for start, size in virtual.live for n in range(start, start + size)}
    for offset, data in accesses:
        writes, _ = virtual.write(offset, data)
        for write in writes:
            touched = set(range(write.offset, write.offset + len(write.data)))
            assert touched <= live
            assert touched <= set(range(offset, offset + len(data)))
        size = len(data)
        seen = virtual.overlay(offset, virtual.space.read(offset, size), b"\xff" * size)
        assert len(seen) == size
    after = bytes(virtual.space.data)
    assert chain(after) == chain(before)
    assert after[:4] == before[:4]
    assert after[0x100:] == bytes(len(after) - 0x100)
    if virtual.msi is not None:
        assert virtual.msi.vectors <= 32
        for vector in range(virtual.msi.vectors):
            virtual.msi.message(vector)
