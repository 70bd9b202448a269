"""Data objects, against the specification's numbers; `test_compiler.py` holds them against a compiler."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.boot.acpi import aml


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (1, "01"),
        (2, "0a02"),
        (0xFF, "0aff"),
        (0x100, "0b0001"),
        (0xFFFF, "0bffff"),
        (0x10000, "0c00000100"),
        (0xFFFFFFFF, "0cffffffff"),
        (0x100000000, "0e0000000001000000"),
        (0xFFFFFFFFFFFFFFFE, "0efeffffffffffffff"),
        (0xFFFFFFFFFFFFFFFF, "ff"),
    ],
)
def test_integers_take_the_shortest_form(value: int, encoded: str) -> None:
    assert aml.integer(value).hex() == encoded


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_integers_of_other_than_64_unsigned_bits_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match="64 bits"):
        aml.integer(value)


@given(st.binary(max_size=300))
def test_a_buffer_holds_its_size_and_its_bytes(data: bytes) -> None:
    encoded = aml.buffer(data)
    assert encoded[0] == 0x11
    assert encoded.endswith(aml.integer(len(data)) + data)


def test_strings_end_with_nul() -> None:
    assert aml.string("COM1") == b"\x0dCOM1\0"


@pytest.mark.parametrize("text", ["caf\xe9", "a\0b"])
def test_strings_of_other_characters_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="string"):
        aml.string(text)


def test_a_package_counts_its_elements() -> None:
    assert aml.package(aml.integer(5), aml.integer(0)) == bytes.fromhex("1205020a0500")


def test_a_package_of_256_elements_is_refused() -> None:
    assert aml.package(*[aml.integer(0)] * 255)
    with pytest.raises(ValueError, match="255"):
        aml.package(*[aml.integer(0)] * 256)


def test_eisa_ids_are_compressed_as_the_specification_says() -> None:
    assert aml.eisa_id("PNP0501").hex() == "0c41d00501"


@pytest.mark.parametrize("text", ["PNP501", "pnp0501", "PNP050G", "PNP05011", "ACPI0013"])
def test_what_is_not_an_eisa_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="EISA ID"):
        aml.eisa_id(text)


def test_a_uuid_is_a_buffer_with_its_first_groups_little_endian() -> None:
    encoded = aml.uuid("33db4d5b-1ff7-401c-9657-7441c03dd766")
    assert encoded == bytes.fromhex("11130a10 5b4ddb33 f71f 1c40 96577441c03dd766")
