"""Whatever tree is written, a reader of the specification's finds the same in it, and dtc nothing wrong."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiovmm.boot.fdt import EMPTY, Node, cells, flatten, quads, raw_string, strings
from aiovmm.errors import UsageError
from tests.boot.fdt.dtc import decompile
from tests.boot.fdt.reader import Read, read

NAME = st.text(string.ascii_letters, min_size=1, max_size=31)
PROPERTY = st.text(string.ascii_letters + string.digits + ",._+?#-", min_size=1, max_size=31)
PROPERTIES = st.dictionaries(PROPERTY, st.binary(max_size=70), max_size=5)


def nodes(name: st.SearchStrategy[str]) -> st.SearchStrategy[Node]:
    leaf = st.builds(Node, name, PROPERTIES)
    return st.recursive(
        leaf,
        lambda inner: st.builds(
            Node, name, PROPERTIES, st.lists(inner, max_size=4, unique_by=lambda n: n.name).map(tuple)
        ),
    )


def same(written: Node, found: Read) -> bool:
    return (
        written.name == found.name
        and list(written.properties.items()) == list(found.properties.items())
        and len(written.children) == len(found.children)
        and all(same(a, b) for a, b in zip(written.children, found.children, strict=True))
    )


@settings(deadline=None)
@given(top=nodes(NAME), reserved=st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(1, 2**64 - 1)), max_size=3))
def test_a_reader_finds_what_was_written(top: Node, reserved: list[tuple[int, int]]) -> None:
    root = Node("", {}, (top,))
    assert same(root, read(flatten(root, reserved=reserved)))


def test_dtc_reads_it() -> None:
    tree = Node(
        "",
        {"#address-cells": cells(2), "#size-cells": cells(1), "model": strings("a model")},
        (
            Node("memory@100000000", {"device_type": strings("memory"), "reg": quads(1 << 32) + cells(4096)}),
            Node("node", {"one": EMPTY, "words": strings("first", "second"), "odd": b"\x01\x02\x03"}),
        ),
    )
    source = decompile(flatten(tree, reserved=[(0x1000, 0x2000)], boot_cpu=3))
    assert "/memreserve/\t0x0000000000001000 0x0000000000002000;" in source
    assert 'words = "first\\0second";' in source or 'words = "first", "second";' in source  # as newer ones have it
    assert "odd = [01 02 03];" in source
    assert "reg = <0x01 0x00 0x1000>;" in source


def test_names_of_properties_are_there_once() -> None:
    tree = Node("", {}, tuple(Node(f"n{i}", {"compatible": b"\0", "reg": b""}) for i in range(50)))
    assert flatten(tree).count(b"compatible\0") == 1


@pytest.mark.parametrize("name", ["x" * 32, "1st", "a b", "a/b", "a@", "@1", "ä", "a@1@2", "a\0"])
def test_names_that_no_node_can_have(name: str) -> None:
    with pytest.raises(UsageError, match="no name of a device tree's node"):
        Node(name)


@pytest.mark.parametrize("name", ["", "x" * 32, "a b", "a@1", "ö"])
def test_names_that_no_property_can_have(name: str) -> None:
    with pytest.raises(UsageError, match="no name of a device tree's property"):
        Node("n", {name: EMPTY})


def test_two_nodes_of_one_name_and_a_root_below() -> None:
    with pytest.raises(UsageError, match="two nodes 'cpu@0'"):
        Node("cpus", {}, (Node("cpu@0"), Node("cpu@1"), Node("cpu@0")))
    with pytest.raises(UsageError, match="root"):
        Node("", {}, (Node(""),))


@pytest.mark.parametrize("value", [-1, 1 << 32])
def test_numbers_that_do_not_fit(value: int) -> None:
    with pytest.raises(UsageError, match="device tree's numbers"):
        cells(0, value)
    with pytest.raises(UsageError, match="device tree's numbers"):
        quads(value << 32)


def test_a_string_with_a_nul() -> None:
    with pytest.raises(UsageError, match="NUL"):
        raw_string(b"quiet\0init=/bin/sh")
