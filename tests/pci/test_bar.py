"""BARs: the sizing protocol as a guest runs it, with any width of access."""

from __future__ import annotations

import pytest

from aiovmm.bus import Space
from aiovmm.errors import UsageError
from aiovmm.pci.bar import Bar, BarKind
from aiovmm.pci.config_space import ConfigSpace, Identity

ID = Identity(0x1AF4, 0x1042, 0x018000)


def with_bar(bar: Bar) -> ConfigSpace:
    config = ConfigSpace(ID)
    bar.install(config)
    return config


@pytest.mark.parametrize(
    ("bar", "low"),
    [
        (Bar(0, BarKind.MEM32, 0x1000), 0xFFFFF000),
        (Bar(3, BarKind.MEM32, 0x10, prefetchable=True), 0xFFFFFFF8),
        (Bar(0, BarKind.MEM64, 0x10000), 0xFFFF0004),
        (Bar(5, BarKind.IO, 0x20), 0xFFFFFFE1),
    ],
)
def test_sizing_reads_the_size_back(bar: Bar, low: int) -> None:
    config = with_bar(bar)
    config.write(bar.register, b"\xff" * 4)
    assert config.get(bar.register, 4) == low


def test_a_64_bit_bar_is_sized_in_two_halves() -> None:
    bar = Bar(2, BarKind.MEM64, 1 << 36)
    config = with_bar(bar)
    config.write(0x18, b"\xff" * 4)
    config.write(0x1C, b"\xff" * 4)
    assert config.get(0x18, 8) == 0xFFFFFFF0_00000004


def test_sizing_byte_by_byte_is_the_same() -> None:
    bar = Bar(0, BarKind.MEM64, 0x4000)
    config = with_bar(bar)
    for offset in range(0x10, 0x18):
        config.write(offset, b"\xff")
    assert config.get(0x10, 8) == 0xFFFFFFFF_FFFFC004


def test_registers_without_a_bar_stay_zero() -> None:
    config = with_bar(Bar(0, BarKind.MEM32, 0x1000))
    config.write(0x14, b"\xff" * 8)
    assert config.get(0x14, 8) == 0


def test_decode_follows_the_command_register() -> None:
    bar = Bar(0, BarKind.MEM64, 0x4000)
    config = with_bar(bar)
    bar.assign(config, 0x1_0000_8000)
    assert bar.address(config) == 0x1_0000_8000
    assert bar.decoded(config) is None
    config.write(0x04, b"\x01\x00")
    assert bar.decoded(config) is None, "I/O decode is not memory decode"
    config.write(0x04, b"\x02\x00")
    assert bar.decoded(config) == 0x1_0000_8000


def test_an_io_bar_decodes_ports() -> None:
    bar = Bar(1, BarKind.IO, 0x40)
    config = with_bar(bar)
    bar.assign(config, 0xC040)
    config.write(0x04, b"\x03\x00")
    assert (bar.space, bar.decoded(config)) == (Space.PIO, 0xC040)


@pytest.mark.parametrize(
    ("index", "kind", "size"),
    [
        (0, BarKind.MEM32, 0x3000),
        (0, BarKind.MEM32, 8),
        (0, BarKind.MEM32, 1 << 32),
        (5, BarKind.MEM64, 0x1000),
        (6, BarKind.MEM32, 0x1000),
        (0, BarKind.IO, 512),
    ],
)
def test_impossible_bars_are_refused(index: int, kind: BarKind, size: int) -> None:
    with pytest.raises(UsageError, match="BAR"):
        Bar(index, kind, size)
