"""Configuration mechanism #1 as Linux, firmware and odd guests use it."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiovmm.bus import Range, Space
from aiovmm.pci.config_ports import ConfigPorts
from aiovmm.pci.segment import PciSegment
from aiovmm.testing.pci import RecordingServices


def outl(services: RecordingServices, port: int, value: int) -> None:
    services.write(port, value.to_bytes(4, "little"), Space.PIO)


def inp(services: RecordingServices, port: int, size: int) -> int:
    return int.from_bytes(services.read(port, size, Space.PIO), "little")


@pytest.mark.usefixtures("segment")
def test_linux_finds_the_mechanism(services: RecordingServices) -> None:
    """pci_check_type1 of arch/x86/pci/direct.c, then its sanity check for a host bridge."""
    services.write(0xCFB, b"\x01", Space.PIO)
    saved = inp(services, 0xCF8, 4)
    outl(services, 0xCF8, 0x80000000)
    assert inp(services, 0xCF8, 4) == 0x80000000
    assert inp(services, 0xCFC, 2) == 0x8086
    outl(services, 0xCF8, 0x80000008)
    assert inp(services, 0xCFE, 2) == 0x0600
    outl(services, 0xCF8, saved)


@pytest.mark.usefixtures("segment")
@pytest.mark.parametrize(
    "address",
    [0x00000000, 0x80010000, 0x80000100, 0x80000800],
    ids=["not enabled", "bus 1", "function 1", "empty slot"],
)
def test_nothing_there_reads_as_ones(services: RecordingServices, address: int) -> None:
    outl(services, 0xCF8, address)
    assert inp(services, 0xCFC, 4) == 0xFFFFFFFF
    outl(services, 0xCFC, 0)


@pytest.mark.usefixtures("segment")
def test_bytes_and_words_of_the_window(services: RecordingServices) -> None:
    outl(services, 0xCF8, 0x80000000)
    assert [inp(services, 0xCFC + i, 1) for i in range(4)] == [0x86, 0x80, 0x57, 0x0D]
    assert inp(services, 0xCFE, 2) == 0x0D57
    assert inp(services, 0xCF8, 2) == 0xFFFF, "only dwords reach the address register"


@pytest.mark.usefixtures("segment")
def test_writes_reach_the_register(services: RecordingServices, segment: PciSegment) -> None:
    outl(services, 0xCF8, 0x8000003C)
    services.write(0xCFC, b"\x0b", Space.PIO)
    assert segment.read_config(0, 0x3C, 1) == b"\x0b"


def test_port_cf9_resets_once_on_the_rising_bit(services: RecordingServices, segment: PciSegment) -> None:
    services.bus.remove(services.bus.find(Space.PIO, 0xCF8))  # type: ignore[arg-type]
    resets: list[int] = []
    ports = ConfigPorts(segment, reset=lambda: resets.append(1))
    services.bus.add(Range(Space.PIO, 0xCF8, 8, ports, "ports"))
    services.write(0xCF9, b"\x02", Space.PIO)
    assert (inp(services, 0xCF9, 1), resets) == (0x02, [])
    services.write(0xCF9, b"\x06", Space.PIO)
    assert resets == [1]
    assert inp(services, 0xCF9, 1) == 0x02


@pytest.mark.usefixtures("segment")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(0xCF5, 0xD02), st.sampled_from([1, 2, 4]), st.integers(0, 2**32 - 1), st.booleans()),
        max_size=30,
    )
)
def test_no_port_access_raises_or_changes_the_bridge(
    services: RecordingServices, steps: list[tuple[int, int, int, bool]]
) -> None:
    for port, size, value, write in steps:
        if write:
            data = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
            assert services.write(port, data, Space.PIO) is None
        else:
            assert len(services.read(port, size, Space.PIO)) == size
    outl(services, 0xCF8, 0x80000000)
    assert inp(services, 0xCFC, 4) == 0x0D578086
