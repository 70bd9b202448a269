"""Configuration space: what the guest can and cannot change, at any offset and width."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.errors import SnapshotError, UsageError
from aiovmm.pci.config_space import STATUS, STATUS_INTERRUPT, ConfigSpace, Identity


def space() -> ConfigSpace:
    return ConfigSpace(Identity(0x1AF4, 0x1042, 0x018000, revision=1, subsystem_vendor=0x1AF4, subsystem=0x1100))


def test_identity_is_where_the_header_says() -> None:
    config = space()
    assert config.read(0, 4) == bytes.fromhex("f41a4210")
    assert config.read(0x08, 4) == bytes.fromhex("01008001")
    assert config.read(0x2C, 4) == bytes.fromhex("f41a0011")
    assert config.read(0x0E, 1) == b"\0", "header type 0, one function"
    assert config.read(0x3D, 1) == b"\0", "no interrupt pin"


def test_identity_cannot_be_written() -> None:
    config = space()
    before = bytes(config.data)
    config.write(0x00, b"\xff" * 4)
    config.write(0x08, b"\x55" * 4)
    config.write(0x2C, b"\0" * 4)
    assert bytes(config.data) == before


def test_command_keeps_only_its_defined_bits() -> None:
    config = space()
    config.write(0x04, b"\xff\xff")
    assert config.get(0x04, 2) == 0x0544, "no BARs: neither I/O nor memory decode can be turned on"


def test_status_error_bits_are_cleared_by_writing_ones() -> None:
    config = space()
    config.put(0x06, 2, 0xF910)
    config.write(0x04, bytes.fromhex("0000 00 80"))
    assert config.get(0x06, 2) == 0x7910
    config.write(0x06, b"\xff\xff")
    assert config.get(0x06, 2) == 0x0010


def test_a_write_across_registers_obeys_each_mask() -> None:
    config = space()
    config.write(0x0A, b"\xff" * 4)
    assert config.read(0x08, 8) == bytes.fromhex("01008001 ff000000"), "cache line size is storage, class is fixed"


def test_capabilities_form_a_list() -> None:
    config = space()
    assert not config.get(0x06, 2) & 0x10
    first = config.add_capability(0x09, b"\x05abc")
    second = config.add_capability(0x11, b"\x02\x00" + bytes(8), b"\x00\xc0")
    assert config.get(0x06, 2) & 0x10
    assert (config.get(0x34, 1), first, second) == (0x40, 0x40, 0x48)
    assert config.read(first, 6) == b"\x09\x48\x05abc"
    assert config.read(second, 4) == b"\x11\x00\x02\x00"
    config.write(second, b"\xff" * 12)
    assert config.read(second, 12) == b"\x11\x00\x02\xc0" + bytes(8)


def test_capabilities_that_do_not_fit_are_refused() -> None:
    config = space()
    with pytest.raises(UsageError, match="does not fit"):
        config.add_capability(0x09, bytes(200))


def test_extended_space_is_zero_and_what_lies_outside_reads_as_ones() -> None:
    config = space()
    config.write(0x100, b"\xff" * 8)
    assert config.read(0x100, 8) == bytes(8)
    config.write(0xFE, b"\xff" * 4)
    assert config.read(0xFC, 8) == bytes(8)
    assert config.read(4096, 4) == b"\xff" * 4
    assert config.read(4094, 4) == b"\xff" * 4


@given(st.lists(st.tuples(st.integers(-8, 5000), st.binary(min_size=1, max_size=8)), max_size=30))
def test_no_write_changes_a_fixed_bit_or_the_size(writes: list[tuple[int, bytes]]) -> None:
    config = space()
    config.add_capability(0x11, b"\x02\x00" + bytes(8), b"\x00\xc0")
    fixed = bytes(config.data)
    for offset, data in writes:
        config.write(offset, data)
        config.read(offset, len(data))
    for offset in (
        *range(0x04),
        *range(0x06, 0x0C),
        0x0E,
        0x2C,
        0x34,
        0x3D,
        0x40,
        0x41,
        0x42,
    ):
        assert config.data[offset] == fixed[offset]
    assert len(config.data) == 256, "native code has its address"
    assert config.read(0x100, 0xF00) == bytes(0xF00)


def test_a_copy_is_apart_from_what_it_was_made_of() -> None:
    config = space()
    config.add_capability(0x11, b"\x02\x00" + bytes(8), b"\x00\xc0")
    before = bytes(config.data)
    copy = config.copy()
    copy.write(0x04, b"\xff\xff")
    copy.allow(0x40, 4, 0xFF)
    copy.add_capability(0x09, bytes(10))
    assert bytes(config.data) == before
    assert config.add_capability(0x09, bytes(10)) == copy.data[0x41]


@given(st.integers(0, 0xFF), st.integers(1, 0xFF))
def test_registers_that_the_guest_cannot_have_written_are_of_another_function(offset: int, flipped: int) -> None:
    config, saved = space(), bytearray(space().data[:0x100])
    saved[offset] ^= flipped
    writable = config._writable[offset] | config._clear[offset] | (STATUS_INTERRUPT if offset == STATUS else 0)
    if not flipped & ~writable:
        config.load({"registers": bytes(saved)})
        assert config.data[offset] == saved[offset] & ~(STATUS_INTERRUPT if offset == STATUS else 0)
        return
    with pytest.raises(SnapshotError, match=rf"differ at {offset:#x}: "):
        config.load({"registers": bytes(saved)})
    assert config.data == space().data
