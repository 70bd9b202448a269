"""The interrupt controller's state: all of it comes back, in the order that it has to be put in, and what is none is refused."""

from __future__ import annotations

import contextlib
import copy
import errno
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.errors import KvmError, SnapshotError
from aiovmm.kvm.aarch64.gicstate import GicImage, read_gic
from aiovmm.native import ffi
from aiovmm.runtime.plain import Fields

DIST, CTRL, REDIST, SYSREGS, LEVEL, ITS = 1, 4, 5, 6, 7, 8
SAVE_TABLES, RESTORE_TABLES, SAVE_PENDING = 1, 2, 3
ICC_CTLR = 0xC664  # S3_0_C12_C12_4
MPIDRS = [0x8000_0000, 0x8000_0001, 0x80_8003_0201]
PLACES = [0, 1, 0x80_03_02_01]


class FakeDevice:
    """Attributes by group and number: those that were never set are `unset(group, attribute)`."""

    def __init__(self, unset: Callable[[int, int], int]) -> None:
        self.values: dict[tuple[int, int], int] = {}
        self.log: list[tuple[str, int, int]] = []
        self._unset = unset

    def get(self, group: int, attribute: int, value: Any, what: str) -> None:
        """See KvmDevice."""
        self.log.append(("get", group, attribute))
        wide = group in (SYSREGS, ITS)
        assert ffi.typeof(value) is ffi.typeof("uint64_t *" if wide else "uint32_t *"), what
        value[0] = self.values.get((group, attribute), self._unset(group, attribute))

    def set(self, group: int, attribute: int, value: Any, what: str) -> None:
        """See KvmDevice."""
        self.log.append(("set", group, attribute))
        if value is not None:
            wide = group in (SYSREGS, ITS)
            assert ffi.typeof(value) is ffi.typeof("uint64_t *" if wide else "uint32_t *"), what
            self.values[group, attribute] = int(value[0])


def gic(unset: Callable[[int, int], int] = lambda _group, _attribute: 0) -> Any:
    return SimpleNamespace(controller=FakeDevice(unset), service=FakeDevice(unset))


def told_apart(group: int, attribute: int) -> int:
    """Another value in each register, with a control register of five bits of priority."""
    if (group, attribute & 0xFFFF) == (SYSREGS, ICC_CTLR):
        return 4 << 8
    value = (group << 24 ^ (attribute >> 32) * 0x9E37 ^ attribute & 0xFF_FFFF) & 0xFFFF_FFFF
    return value | value << 32 if group in (SYSREGS, ITS) else value


def numbered(state: Any) -> GicImage:
    return GicImage.read(Fields(state, "gic"), len(MPIDRS))


def test_all_that_is_read_is_put_where_it_was() -> None:
    there, here = gic(told_apart), gic()
    state = read_gic(there, MPIDRS)
    numbered(copy.deepcopy(state)).put(here, MPIDRS)
    assert read_gic(here, MPIDRS) == state
    for now, then in ((here.controller, there.controller), (here.service, there.service)):
        read = {(group, attribute) for kind, group, attribute in then.log if kind == "get"}
        assert now.values == {key: told_apart(*key) for key in read}


def test_which_registers_are_read() -> None:
    there = gic(told_apart)
    read_gic(there, MPIDRS)
    read = {(group, attribute) for kind, group, attribute in there.controller.log if kind == "get"}
    enabled = {attribute for group, attribute in read if group == DIST and 0x100 <= attribute < 0x180}
    assert enabled == set(range(0x104, 0x120, 4)), "of SPIs 32 to 255"
    routes = {attribute for group, attribute in read if group == DIST and attribute >= 0x6000}
    assert routes == set(range(0x6100, 0x6800, 4))
    for place in PLACES:
        assert (REDIST, place << 32 | 0x10100) in read
        assert (LEVEL, place << 32) in read, "the lines of its own interrupts"
        assert (SYSREGS, place << 32 | ICC_CTLR) in read
    assert not {attribute & 0xFFFF_FFFF for group, attribute in read if group == LEVEL} - {0}, "and of no device's"
    assert (ITS, 0x138) in {(group, attribute) for _, group, attribute in there.service.log}


def test_what_is_in_memory_is_written_there_first() -> None:
    there = gic(told_apart)
    read_gic(there, MPIDRS)
    assert there.service.log[0] == ("set", CTRL, SAVE_TABLES)
    assert there.controller.log[0] == ("set", CTRL, SAVE_PENDING)


def test_the_order_in_which_it_is_put() -> None:
    here = gic()
    numbered(read_gic(gic(told_apart), MPIDRS)).put(here, MPIDRS)

    def at(device: FakeDevice, group: int, attribute: int) -> int:
        return device.log.index(("set", group, attribute))

    gicd = here.controller
    assert at(gicd, DIST, 0x8) == 0, "the revision says what all others mean"
    assert at(gicd, DIST, 0xC08) < at(gicd, DIST, 0x204), "edge or level before pending"
    for place in PLACES:
        base = place << 32
        assert at(gicd, REDIST, base | 0x7C) < at(gicd, REDIST, base), "its tables before it takes messages"
        assert at(gicd, LEVEL, base) < at(gicd, REDIST, base | 0x10200), "the line before it is pending"
        assert at(gicd, SYSREGS, base | ICC_CTLR) < at(gicd, SYSREGS, base | 0xC663), "which says what that is"
    its = here.service
    queue, read, written = (at(its, ITS, offset) for offset in (0x80, 0x90, 0x88))
    assert queue < min(read, written), "a queue that is set begins anew"
    restored = at(its, CTRL, RESTORE_TABLES)
    assert max(queue, read, written, at(its, ITS, 0x4), at(its, ITS, 0x138)) < restored < at(its, ITS, 0x0)


@pytest.mark.parametrize(("bits", "count"), [(4, 1), (5, 1), (6, 2), (7, 4), (8, 4)])
def test_as_many_active_priorities_as_there_are(bits: int, count: int) -> None:
    def unset(group: int, attribute: int) -> int:
        return bits - 1 << 8 if (group, attribute & 0xFFFF) == (SYSREGS, ICC_CTLR) else 0

    state = read_gic(gic(unset), [0])
    interface = state["processors"][0]["interface"]
    assert [len(interface[f"active_priorities_{group}"]) for group in (0, 1)] == [count, count]
    GicImage.read(Fields(state, "gic"), 1)


def test_a_kvm_that_takes_none_of_it_is_an_error_with_its_reason() -> None:
    here = gic()

    def refuse(group: int, attribute: int, value: Any, what: str) -> None:
        raise KvmError(f"{what} of the interrupt controller", errno.EINVAL)

    image = numbered(read_gic(gic(told_apart), MPIDRS))
    here.controller.set = refuse
    with pytest.raises(SnapshotError, match=r"setting revision to 0x.* of the interrupt controller.*newer one"):
        image.put(here, MPIDRS)


NUMBERS = st.one_of(st.integers(-1, 1 << 65), st.none(), st.text(max_size=3), st.lists(st.integers(), max_size=2))


@given(st.data())
def test_what_is_damaged_is_refused_or_harmless(data: st.DataObject) -> None:
    state = read_gic(gic(told_apart), MPIDRS)
    at: Any = state
    for _ in range(data.draw(st.integers(1, 5))):
        if not isinstance(at, (dict, list)) or not at:
            break
        holder, key = at, data.draw(st.sampled_from(list(at) if isinstance(at, dict) else list(range(len(at)))))
        at = at[key]
    if data.draw(st.booleans()):
        holder[key] = data.draw(NUMBERS)
    elif isinstance(holder, dict):
        holder[data.draw(st.text(max_size=3))] = holder.pop(key)
    else:
        holder.append(data.draw(NUMBERS))
    with contextlib.suppress(SnapshotError):
        numbered(state).put(gic(), MPIDRS)
