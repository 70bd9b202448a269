"""SRAT and SLIT, as Linux reads them (drivers/acpi/numa/srat.c)."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.boot.acpi import aml
from aiovmm.boot.x86_64.acpi import AcpiConfig, Cpu, NumaNode, build
from aiovmm.boot.x86_64.acpi.numa import slit, srat
from aiovmm.errors import ConfigError
from tests.boot.x86_64.acpi.machines import BASE, MACHINES, NODES


def entries(table: bytes) -> list[bytes]:
    found, at = [], 48
    while at < len(table):
        found.append(table[at : at + table[at + 1]])
        at += table[at + 1]
    return found


def read(table: bytes) -> tuple[dict[int, int], list[tuple[int, int, int]]]:
    """APIC id -> node, and (node, address, size) of memory."""
    cpus, memory = {}, []
    for entry in entries(table):
        if entry[0] == 0:
            assert len(entry) == 16
            assert entry[4] & 1
            cpus[entry[3]] = entry[2] | int.from_bytes(entry[9:12], "little") << 8
        elif entry[0] == 2:
            node, apic, flags = struct.unpack_from("<III", entry, 4)
            assert (len(entry), flags) == (24, 1)
            cpus[apic] = node
        elif entry[0] == 5:
            assert len(entry) == 32
        else:
            node, address, size, flags = struct.unpack("<2xI2xQQ4xI8x", entry)
            assert (entry[0], len(entry), flags) == (1, 40, 1)
            memory.append((node, address, size))
    return cpus, memory


nodes = st.integers(1, 64).flatmap(
    lambda count: st.tuples(
        st.just(count),
        st.lists(st.integers(0, count - 1), min_size=1, max_size=300),
        st.lists(st.tuples(st.integers(0, count - 1), st.integers(1, 1 << 40)), max_size=20),
        st.dictionaries(
            st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)).filter(lambda pair: pair[0] != pair[1]),
            st.integers(11, 255),
            max_size=20,
        ),
    )
)


@given(nodes)
def test_what_is_written_is_what_is_read(
    machine: tuple[int, list[int], list[tuple[int, int]], dict[tuple[int, int], int]],
) -> None:
    count, homes, memory, distances = machine
    cpus = tuple(Cpu(3 * uid) for uid in range(len(homes)))
    ram = [(node, n << 44, size) for n, (node, size) in enumerate(memory)]
    described = [
        NumaNode(
            number,
            tuple(uid for uid, home in enumerate(homes) if home == number),
            tuple((gpa, size) for node, gpa, size in ram if node == number),
            tuple((other, distance) for (node, other), distance in distances.items() if node == number),
        )
        for number in range(count)
    ]
    found, pieces = read(srat(described, cpus))
    assert found == {cpus[uid].apic_id: home for uid, home in enumerate(homes)}
    assert sorted(pieces) == sorted(ram)
    table = slit(described)
    assert struct.unpack_from("<Q", table, 36) == (count,)
    square = table[44:]
    for a in range(count):
        for b in range(count):
            said = distances.get((a, b), distances.get((b, a), 20))
            assert square[a * count + b] == (10 if a == b else said)


def test_an_initiator_is_a_function_of_pci() -> None:
    (entry,) = entries(srat([NumaNode(7, initiator=(0x1234, 0x02F8))], ()))
    kind, length, handle, node, segment, bus, devfn, flags = struct.unpack("<BBxBIHBB12xI4x", entry)
    assert (kind, length, handle, node, flags) == (5, 32, 1, 7, 1)
    assert (segment, bus, devfn) == (0x1234, 0x02, 0xF8)


def test_a_bridge_says_which_node_it_is_near() -> None:
    tables = build(MACHINES["NUMA nodes"], BASE).tables
    assert tables["DSDT"].count(aml.name("_PXM", aml.integer(0))) == 1
    assert tables["DSDT"].count(aml.name("_PXM", aml.integer(1))) == 1
    assert b"_PXM" not in build(MACHINES["two segments and an IOMMU"], BASE).tables["DSDT"]


@pytest.mark.parametrize(
    "numa", [(NumaNode(0), NumaNode(0)), (NumaNode(0, (0,)), NumaNode(1, (0,))), (NumaNode(0, (1,)),)]
)
def test_nodes_that_cannot_be_are_refused(numa: tuple[NumaNode, ...]) -> None:
    with pytest.raises(ConfigError, match=r"acpi\.numa"):
        AcpiConfig(numa=numa)
    assert NODES


def test_numbers_that_no_node_has_are_far_from_all() -> None:
    table = slit([NumaNode(1, (0,), distances=((3, 25),)), NumaNode(3, (1,))])
    assert struct.unpack_from("<Q", table, 36) == (4,)
    rows = [list(table[at : at + 4]) for at in range(44, 60, 4)]
    assert rows == [[10, 20, 20, 20], [20, 10, 20, 25], [20, 20, 10, 20], [20, 25, 20, 10]]
