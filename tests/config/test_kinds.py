"""The types of a configuration's fields are checked for each that is made, whatever was made before it."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.config.kinds import dataclass
from aiovmm.errors import ConfigError


class Mode(enum.Enum):
    OFF = "off"
    NULL = "null"


def made() -> type[Any]:
    """A class that nothing was made of yet."""

    @dataclass()
    class FewConfig:
        mode: Mode | str = "other"
        number: int | str | None = None
        flag: bool = False
        path: Path | None = None
        names: tuple[str, ...] = ()

    return FewConfig


VALUES = st.one_of(
    st.sampled_from(["off", "null", "other", Mode.OFF, True, False, None, 0, 1, -1, 1.5, Path("a"), "a", b"a"]),
    st.lists(st.sampled_from(["a", "b", 1]), max_size=2).map(tuple),
)
FIELDS = st.sampled_from(["mode", "number", "flag", "path", "names"])


def outcome(cls: type[Any], name: str, value: object) -> object:
    try:
        result = getattr(cls(**{name: value}), name)
    except ConfigError as exc:
        return str(exc)
    return type(result), result


@given(st.lists(st.tuples(FIELDS, VALUES), max_size=12), FIELDS, VALUES)
def test_what_was_made_before_changes_nothing(earlier: list[tuple[str, object]], name: str, value: object) -> None:
    used = made()
    for field, other in earlier:
        outcome(used, field, other)
    assert outcome(used, name, value) == outcome(made(), name, value)


def test_a_text_becomes_what_it_names_after_one_that_named_nothing() -> None:
    cls = made()
    assert [cls(mode=mode).mode for mode in ("other", Mode.NULL, "off")] == ["other", Mode.NULL, Mode.OFF]
    with pytest.raises(ConfigError, match="number: True is not a whole number"):
        cls(number=True)


def test_a_path_of_nothing_is_not_where_this_process_is() -> None:
    with pytest.raises(ConfigError, match="path: is an empty path"):
        made()(path="")
    assert made()(path=".").path == Path(".")
