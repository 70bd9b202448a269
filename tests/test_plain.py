"""State as plain data is input: whatever is wrong with it has a place and an error, and nothing else can come of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.errors import SnapshotError
from aiovmm.runtime.plain import Fields, Plain

SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.binary(max_size=5)
PLAIN = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
READERS: list[tuple[Callable[[Fields], Plain], Callable[[Plain], bool]]] = [
    (lambda f: f.number("a", 2, 9), lambda v: type(v) is int and 2 <= v <= 9),
    (lambda f: f.numbers("a", 2), lambda v: len(v) == 2 and all(type(n) is int and 0 <= n < 1 << 64 for n in v)),
    (lambda f: f.flag("a"), lambda v: isinstance(v, bool)),
    (lambda f: f.text("a", ("x", "y")), lambda v: v in ("x", "y")),
    (lambda f: f.data("a", 3), lambda v: isinstance(v, bytes) and len(v) == 3),
    (lambda f: f.data("a", most=3), lambda v: isinstance(v, bytes) and len(v) <= 3),
    (lambda f: f.list("a", most=2), lambda v: isinstance(v, list) and len(v) <= 2),
    (lambda f: f.state("a"), lambda v: isinstance(v, dict)),
]


@pytest.mark.parametrize(("read", "right"), READERS)
@given(value=PLAIN)
def test_what_is_read_is_right_or_refused_by_its_place(
    read: Callable[[Fields], Plain], right: Callable[[Plain], bool], value: Plain
) -> None:
    fields = Fields({"a": value}, "rtc")
    try:
        seen = read(fields)
    except SnapshotError as error:
        refused = str(error)
    else:
        refused = ""
        assert right(seen)
    assert not refused or refused.startswith("rtc.a")


@given(PLAIN)
def test_only_fields_are_fields(value: Plain) -> None:
    if isinstance(value, dict):
        assert Fields(value, "rtc").where == "rtc"
    else:
        with pytest.raises(SnapshotError, match="rtc is"):
            Fields(value, "rtc")


def test_truth_is_no_number_and_no_number_is_truth() -> None:
    with pytest.raises(SnapshotError, match=r"rtc\.a is True, not a number from 0 to 9"):
        Fields({"a": True}, "rtc").number("a", 0, 9)
    with pytest.raises(SnapshotError, match=r"rtc\.a is 1, not true or false"):
        Fields({"a": 1}, "rtc").flag("a")


def test_what_is_missing_and_what_nobody_reads_is_named() -> None:
    fields = Fields({"a": 1, "b": {"c": []}, "z": 0}, "rtc")
    with pytest.raises(SnapshotError, match=r"rtc\.x is missing"):
        fields.number("x")
    assert fields.number("a") == 1
    inner = fields.fields("b")
    with pytest.raises(SnapshotError, match=r"rtc\.b\.c is list of 0, not bytes"):
        inner.data("c")
    assert list(inner.several("c")) == []
    inner.end()
    with pytest.raises(SnapshotError, match=r"rtc has fields that this version does not know: 'z'"):
        fields.end()


def test_names_that_nobody_knows_are_told_in_one_line() -> None:
    with pytest.raises(SnapshotError) as caught:
        Fields({"a\nb\x1b[2J": 1}, "rtc").end()
    assert str(caught.value).isprintable()


def test_entries_of_a_list_are_named() -> None:
    with pytest.raises(SnapshotError, match=r"rtc\.a\[1\] is dict of 0, not a number from 0 to 255"):
        Fields({"a": [7, {}]}, "rtc").numbers("a", 2, 0, 0xFF)
    with pytest.raises(SnapshotError, match=r"rtc\.a\[1\]\.b is missing"):
        [each.number("b") for each in Fields({"a": [{"b": 1}, {}]}, "rtc").several("a", 2)]
