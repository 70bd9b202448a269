"""Names and package lengths against the grammar of ACPI 6.4, 20.2.2 and 20.2.4."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.boot.acpi.aml.encoding import name_string, package_of, pkg_length, raw_pkg_length

LARGEST = (1 << 28) - 1


def decode_pkg_length(data: bytes) -> tuple[int, int]:
    """(value, bytes used), as a reader does it: byte by byte."""
    following = data[0] >> 6
    if following == 0:
        return data[0] & 0x3F, 1
    assert data[0] & 0x30 == 0, "bits 5:4 of the lead byte are reserved when bytes follow"
    value = data[0] & 0x0F
    for index in range(following):
        value |= data[1 + index] << (4 + 8 * index)
    return value, 1 + following


@given(st.integers(0, LARGEST))
def test_a_raw_length_reads_back(value: int) -> None:
    encoded = raw_pkg_length(value)
    assert decode_pkg_length(encoded) == (value, len(encoded))


@given(st.one_of(st.integers(0, 70), st.integers(4000, 4200), st.integers(0, LARGEST - 4)))
def test_a_package_length_counts_itself_and_is_the_shortest(size: int) -> None:
    encoded = pkg_length(size)
    assert decode_pkg_length(encoded) == (size + len(encoded), len(encoded))
    room = {1: 0, 2: 1 << 6, 3: 1 << 12, 4: 1 << 20}[len(encoded)]
    assert len(encoded) == 1 or size + len(encoded) - 1 >= room


@pytest.mark.parametrize(
    ("size", "encoded"),
    [
        (0, "01"),
        (62, "3f"),
        (63, "4104"),
        (64, "4204"),
        (4093, "4fff"),
        (4094, "810001"),
        (4095, "820001"),
        ((1 << 20) - 4, "8fffff"),
        ((1 << 20) - 3, "c1000001"),
        (LARGEST - 4, "cfffffff"),
    ],
)
def test_package_lengths_at_the_boundaries(size: int, encoded: str) -> None:
    assert pkg_length(size).hex() == encoded


@pytest.mark.parametrize("value", [-1, LARGEST + 1])
def test_a_length_that_does_not_fit_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match="package length"):
        raw_pkg_length(value)


def test_a_package_too_large_for_any_length_is_refused() -> None:
    with pytest.raises(ValueError, match="package length"):
        pkg_length(LARGEST - 3)


def test_a_package_is_opcode_length_and_content() -> None:
    assert package_of(b"\x5b\x82", b"ab", b"c") == b"\x5b\x82\x04abc"


@pytest.mark.parametrize(
    ("path", "encoded"),
    [
        ("_HID", b"_HID"),
        ("A", b"A___"),
        ("\\", b"\\\0"),
        ("^", b"^\0"),
        ("\\_SB", b"\\_SB_"),
        ("^^PWRB", b"^^PWRB"),
        ("_SB.PC00", b"\x2e_SB_PC00"),
        ("\\_SB.PC00.S1", b"\\\x2f\x03_SB_PC00S1__"),
    ],
)
def test_names(path: str, encoded: bytes) -> None:
    assert name_string(path) == encoded


@pytest.mark.parametrize("path", ["", "TOOLONG", "lower", "1ABC", "A..B", ".A", "A.", "A^B", "\\^A", "A B", "_SB\n"])
def test_what_is_not_a_name_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="ACPI name"):
        name_string(path)


def test_a_name_of_256_segments_is_refused() -> None:
    assert name_string(".".join(["ABCD"] * 255))[:2] == b"\x2f\xff"
    with pytest.raises(ValueError, match="segments"):
        name_string(".".join(["ABCD"] * 256))
