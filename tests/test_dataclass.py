"""aiovmm.runtime.dataclass against the standard library's dataclasses: the same classes, made by both, behave alike."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import os
import pickle
import pkgutil
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

import aiovmm
from aiovmm.runtime.dataclass import OFTEN, _compiled, dataclass, field, field_types, replace

ROOT = str(Path(__file__).resolve().parent.parent)


@dataclass(frozen=True)
class Ours:
    """Two fields with a default, one without, and a check."""

    a: int
    b: tuple[int, ...] = ()
    c: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.a < 0:
            raise ValueError("a is negative")


@dataclasses.dataclass(frozen=True)
class Theirs:
    """The same."""

    a: int
    b: tuple[int, ...] = ()
    c: list[int] = dataclasses.field(default_factory=list)


CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((1,), {}),
    ((), {"a": 1}),
    ((1, (2,)), {"c": [3]}),
    ((1, (2,), [3]), {}),
    ((), {}),
    ((1,), {"a": 1}),
    ((1,), {"d": 1}),
    ((1, (2,), [3], 4), {}),
    ((), {"b": (1,)}),
]


@pytest.mark.parametrize(("args", "kwargs"), CALLS)
def test_a_call_gives_the_same_values_or_is_refused(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        theirs = Theirs(*args, **kwargs)
    except TypeError:
        with pytest.raises(TypeError, match=r"Ours\(\): "):
            Ours(*args, **kwargs)
    else:
        ours = Ours(*args, **kwargs)
        assert dataclasses.asdict(ours) == dataclasses.asdict(theirs)
        assert repr(ours) == repr(theirs).replace("Theirs", "Ours")


@pytest.mark.parametrize("frozen", [True, False])
def test_a_class_that_is_made_often_has_an_init_of_its_own_which_does_the_same(frozen: bool) -> None:
    @dataclass(frozen=frozen)  # type: ignore[literal-required]
    class Often(Ours if frozen else Placed):  # type: ignore[misc]
        put: int = 7
        """Fields may have the names that its text uses."""

    first: dict[str, Any] = {"a": 1, "c": [2]} if frozen else {"z": 1, "name": "n"}
    general, before = Often.__init__, Often(**first)
    for _ in range(OFTEN):
        Often(**first)
    assert Often.__init__ is not general
    assert Often(**first) == before
    assert Often(**first, put=8) != before
    assert inspect.signature(Often) == inspect.signature(type(before))
    if frozen:
        assert Often(1).c is not Often(1).c
        with pytest.raises(ValueError, match="negative"):
            Often(-1)
    for wrong in ({}, {**first, "d": 1}):
        with pytest.raises(TypeError, match=r"Often\.__init__\(\) "):
            Often(**wrong)


def test_all_classes_can_have_one() -> None:
    for module in pkgutil.walk_packages(aiovmm.__path__, "aiovmm."):
        if not module.name.endswith("__main__") and "native.build" not in module.name:
            for name, cls in vars(importlib.import_module(module.name)).items():
                if isinstance(cls, type) and "__shape__" in vars(cls):
                    made = inspect.signature(_compiled(cls, vars(cls)["__shape__"]))
                    assert [*made.parameters] == ["self", *inspect.signature(cls).parameters], name


def test_a_default_factory_makes_a_new_value_each_time() -> None:
    assert Ours(1).c is not Ours(1).c


def test_values_compare_and_a_frozen_one_hashes() -> None:
    assert Ours(1) == Ours(1)
    assert Ours(1) != Ours(2)
    theirs: object = Theirs(1)
    assert Ours(1) != theirs
    assert hash(Point(1, 2)) == hash(Point(1, 2))
    assert len({Point(1, 2), Point(1, 2), Point(2, 1)}) == 2


def test_a_frozen_one_cannot_be_changed() -> None:
    point = Point(1, 2)
    with pytest.raises(FrozenInstanceError):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        del point.x
    assert point.x == 1


def test_replace_checks_again() -> None:
    assert dataclasses.replace(Ours(1), b=(5,)) == Ours(1, (5,))
    with pytest.raises(ValueError, match="negative"):
        dataclasses.replace(Ours(1), a=-1)


def test_copies_and_pickles() -> None:
    point = Point(1, 2)
    assert pickle.loads(pickle.dumps(point)) == copy.deepcopy(point) == copy.copy(point) == point


def test_the_signature_is_that_of_the_fields() -> None:
    ours, theirs = inspect.signature(Ours), inspect.signature(Theirs)
    assert list(ours.parameters) == list(theirs.parameters)
    assert [p.kind for p in ours.parameters.values()] == [p.kind for p in theirs.parameters.values()]


@dataclass(frozen=True)
class Point:
    """No defaults."""

    x: int
    y: int


def test_it_matches_by_position() -> None:
    match Point(1, 2):
        case Point(x, y):
            assert (x, y) == (1, 2)


@dataclass(kw_only=True)
class Named:
    """A base whose fields are given by name."""

    name: str = ""


@dataclass()
class Placed(Named):
    """Its own field is given by position."""

    z: int


def test_inherited_fields_and_ones_given_by_name() -> None:
    placed = Placed(3, name="here")
    assert (placed.z, placed.name) == (3, "here")
    assert Placed(3).name == ""
    with pytest.raises(TypeError):
        Placed(3, "here")  # type: ignore[call-arg]
    placed.z = 4
    assert placed == Placed(4, name="here")
    assert str(inspect.signature(Placed)) == "(z: 'int', *, name: 'str' = '') -> None"
    with pytest.raises(TypeError, match="unhashable"):
        hash(placed)


@dataclass(frozen=True, eq=False)
class Identity:
    """Only equal to itself."""

    x: int


def test_without_eq_identity_counts() -> None:
    one = Identity(1)
    assert one == one
    assert one != Identity(1)
    assert {one: 1}[one] == 1


@dataclass(frozen=True)
class Own:
    """Says itself how it is printed."""

    x: int

    def __repr__(self) -> str:
        return "mine"


def test_what_a_class_defines_itself_stays() -> None:
    assert repr(Own(1)) == "mine"


@dataclass(frozen=True)
class Nothing:
    """No fields."""


def test_one_without_fields() -> None:
    assert Nothing() == Nothing()
    assert repr(Nothing()) == "Nothing()"


def test_the_standard_library_takes_it_for_its_own() -> None:
    assert dataclasses.is_dataclass(Placed)
    assert [(f.name, f.kw_only, f.default) for f in dataclasses.fields(Placed)] == [
        ("name", True, ""),
        ("z", False, dataclasses.MISSING),
    ]
    assert dataclasses.fields(Ours)[2].default_factory is list
    assert [f.type for f in dataclasses.fields(Ours)] == [f.type for f in dataclasses.fields(Theirs)]


def test_what_the_standard_library_knows_it_by_is_made_once() -> None:
    """To define a class costs it half a millisecond, and leaves one that only the garbage collector frees."""
    assert dataclasses.fields(Placed)[0] is dataclasses.fields(Placed)[0]
    assert Placed.__dataclass_params__ is Placed.__dataclass_params__  # type: ignore[attr-defined]


def test_the_standard_librarys_may_be_derived_from_it() -> None:
    @dataclasses.dataclass(frozen=True)
    class Wider(Point):
        """One more field."""

        z: int = 0

    assert dataclasses.astuple(Wider(1, 2)) == (1, 2, 0)
    with pytest.raises(TypeError, match="non-frozen"):
        dataclasses.dataclass(type("Thawed", (Point,), {}))


class Plain(Point):
    """Derived from one, and none itself."""

    def __init__(self) -> None:
        super().__init__(1, 2)


def test_a_class_derived_from_one_has_its_fields() -> None:
    assert repr(Plain()) == "Plain(x=1, y=2)"
    assert list(field_types(Plain)) == ["x", "y"]
    assert dataclasses.asdict(Plain()) == {"x": 1, "y": 2}
    assert Plain() != Point(1, 2)


def test_our_own_replace_is_the_standard_librarys() -> None:
    assert replace(Ours(1), b=(5,)) == dataclasses.replace(Ours(1), b=(5,))
    with pytest.raises(ValueError, match="negative"):
        replace(Ours(1), a=-1)
    with pytest.raises(TypeError, match="unexpected arguments: q"):
        replace(Ours(1), q=1)


@pytest.mark.parametrize("kind", [dataclass, dataclasses.dataclass])
def test_a_field_that_is_named_again(kind: Any) -> None:
    @kind(kw_only=True)
    class Base:
        a: str = "of the base"
        b: int = 1

    @kind()
    class Derived(Base):
        a: str
        b: int = 2

    assert (Derived().a, Derived().b) == ("of the base", 2)
    made = Derived("x", 3)  # type: ignore[call-arg] # mypy does not see what `kind` makes of it
    assert (made.a, made.b) == ("x", 3)


def test_defining_and_making_one_imports_nothing() -> None:
    code = (
        "import sys\nfrom aiovmm.runtime.dataclass import dataclass\n"
        "c = dataclass(frozen=True)(type('c', (), {'__annotations__': {'x': 'int'}}))\n"
        "assert c(1) == c(x=1) and repr(c(1)) == 'c(x=1)'\n"
        "assert not {'dataclasses', 'inspect'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-S", "-c", code], check=True, timeout=60, env={**os.environ, "PYTHONPATH": ROOT})
