"""Pointers keep what they point at: aiovmm.native.owners is the only place that makes them, and it refuses what owns nothing."""

from __future__ import annotations

import ast
import gc
import re
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

import aiovmm
from aiovmm.native import ffi, owners

PACKAGE = Path(aiovmm.__file__).resolve().parent
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent.name != "native")
BARE = {"addressof", "cast", "from_buffer", "from_handle", "gc", "new_handle", "release"}
# An ioctl's argument, and what that points at, which the caller holds, what stands for the memory of a ring that is closed,
# RAM that is given back, which the device holds until it has been, pages of ranges, which their table keeps, and regions of an
# IOMMU's, which their leaf does.
ADDRESSES = {
    "devices/virtio/balloon/device.py",
    "devices/virtio/iommu/table.py",
    "kvm/attributes.py",
    "kvm/aarch64/registers.py",
    "kvm/ioctl.py",
    "kvm/ranges.py",
    "kvm/vfio.py",
    "virtqueue/ring.py",
}


def pointer_fields(array: str) -> set[str]:
    """Names of the fields that are pointers, or with `array` arrays of them, in any structure that Python knows."""
    text = "".join(path.read_text() for path in sorted(PACKAGE.glob("native/cdef/*.h")))
    bodies = re.findall(r"^struct \w+ \{(.*?)\};", text, re.DOTALL | re.MULTILINE)
    return {name for body in bodies for name in re.findall(rf"\*\s*(\w+){array};", body)}


ARRAYS = pointer_fields(r"\[\d+\]")
POINTERS = pointer_fields("") | ARRAYS


def stores(tree: ast.AST) -> Iterator[ast.Attribute]:
    """Pointers that are assigned to, and elements of arrays of them; `self.x` is Python's own."""
    for node in ast.walk(tree):
        fields, target = POINTERS, node
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            fields, target = ARRAYS, node.value
        elif not (isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)):
            continue
        if isinstance(target, ast.Attribute) and target.attr in fields and ast.unparse(target.value) != "self":
            yield target


def offences(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in BARE and isinstance(node.value, ast.Name):
            if node.value.id in ("ffi", "_ffi"):
                yield f"line {node.lineno}: ffi.{node.attr} gives a pointer that keeps nothing: aiovmm.native.owners does"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("ffi.new"):
            for text in ast.walk(node):
                if isinstance(text, ast.Constant) and (text.value in POINTERS or "*[" in str(text.value)):
                    yield f"line {node.lineno}: {text.value!r} in ffi.new keeps nothing: owners.link, owners.pointers"
    for attribute in stores(tree):
        yield f"line {attribute.lineno}: {ast.unparse(attribute)} = ... keeps nothing: owners.link"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_pointer_is_made_elsewhere(path: Path) -> None:
    tree = ast.parse(path.read_text())
    found = list(offences(tree))
    if str(path.relative_to(PACKAGE)) not in ADDRESSES:
        attributes = (n for n in ast.walk(tree) if isinstance(n, ast.Attribute))
        found += [f"line {n.lineno}: owners.address" for n in attributes if ast.unparse(n) == "owners.address"]
    assert not found, f"{path.relative_to(PACKAGE)}: {found}"


@pytest.mark.parametrize(
    "line",
    [
        "bytes(ffi.buffer(ffi.addressof(self._get(name))))",
        'int(ffi.cast("uintptr_t", x))',
        "turn.iov = batch.iov",
        "self.rx.packet, self.tx.packet = buffers",
        "table.ranges[space] = array",
        'ffi.new("struct avmm_input *", {"heads": heads})',
        'ffi.new("struct avmm_blk_request *[]", requests)',
    ],
)
def test_what_the_rule_finds(line: str) -> None:
    assert list(offences(ast.parse(line)))


def test_which_fields_are_pointers() -> None:
    assert {"regions", "ranges", "policy", "iov", "pages", "inflight", "packet", "iov_base"} <= POINTERS
    assert not {"base", "size", "args", "count", "host"} & POINTERS


class Buffer(bytearray):
    """One that can be watched."""


def test_a_structure_keeps_what_it_points_at() -> None:
    rng, buffer = ffi.new("struct avmm_range *"), Buffer(16)
    there = weakref.ref(buffer)
    owners.link(rng, policy=owners.view(buffer))
    del buffer
    gc.collect()
    assert there() is not None
    owners.link(rng, shadow=ffi.NULL)
    assert there() is not None, "that was another field"
    owners.link(rng, policy=ffi.NULL)
    assert there() is None


def test_it_lives_no_longer_than_the_structure() -> None:
    turn, buffer = ffi.new("struct avmm_net_rx *"), Buffer(16)
    there = weakref.ref(buffer)
    owners.link(turn, packet=owners.view(buffer))
    owners.keep(turn, buffer)
    del buffer, turn
    gc.collect()
    assert there() is None


def test_a_part_keeps_the_whole() -> None:
    queue = ffi.new("struct avmm_queue *")
    there = weakref.ref(queue)
    used = owners.part(queue, "used")
    used.host = 7
    assert queue.used.host == 7
    del queue
    gc.collect()
    assert there() is not None
    assert used.host == 7
    del used
    gc.collect()
    assert there() is None


def test_a_view_of_another_type_keeps_its_buffer() -> None:
    buffer = Buffer(64)
    there = weakref.ref(buffer)
    view = owners.view(buffer, "uint16_t *")
    view[1] = 0x1234
    assert buffer[2:4] == b"\x34\x12"
    with pytest.raises(BufferError):
        buffer.append(1)
    del buffer
    gc.collect()
    assert there() is not None
    del view
    gc.collect()
    assert there() is None


def test_what_owns_nothing_is_refused() -> None:
    array = ffi.new("struct avmm_region[]", 4)
    table = ffi.new("struct avmm_mem *")
    owners.link(table, regions=array)
    other = ffi.new("struct avmm_mem *")
    for bare in (table.regions, array + 1, ffi.cast("struct avmm_region *", 64)):
        with pytest.raises(TypeError, match="does not own"):
            owners.link(other, regions=bare)
    with pytest.raises(TypeError, match="does not own"):
        owners.link(ffi.new("struct avmm_mem[]", 1)[0], regions=array)
    with pytest.raises(TypeError, match="does not own"):
        owners.part(array + 1, "base")
