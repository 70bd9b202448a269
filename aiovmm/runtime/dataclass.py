"""`dataclass` for the modules that every start imports: it costs next to nothing to define one.

The standard library's writes `__init__`, `__repr__`, `__eq__` and more as text and compiles them for each class: 0.4 ms, at each
start, for a hundred classes. Here all classes share their methods, which takes 0.015 ms. What the standard library knows a class
of its own by is made when somebody looks, so that its `fields`, `replace`, `asdict` and `is_dataclass` work; so does the match
statement. An instance takes some 0.3 us longer to make than the standard library's: a class of which a guest makes many (packets,
requests) is better off with that one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from itertools import repeat
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

if TYPE_CHECKING:
    from inspect import Parameter, Signature

__all__ = ["dataclass", "field", "field_types", "replace"]

T = TypeVar("T")
_MISSING: Any = object()
OFTEN = 32
"""More than a process with one guest makes of most classes."""


class _Made:
    """A default that is made for each instance."""

    def __init__(self, factory: Callable[[], Any]) -> None:
        self.factory = factory


def field(*, default_factory: Callable[[], T]) -> T:
    """A field whose default is what `default_factory` gives, for each instance anew."""
    return _Made(default_factory)  # type: ignore[return-value]


class _Shape:
    """Fields of a class, those of its bases first: the text of their annotations, their defaults, which are given by name."""

    def __init__(self, cls: type, *, kw_only: bool, frozen: bool) -> None:
        self.frozen = frozen
        self.types: dict[str, str] = {}
        self.defaults: dict[str, Any] = {}
        self.factories: dict[str, Callable[[], Any]] = {}
        self.named: set[str] = set()
        self.same: type | None = None  # the standard library's, once somebody has looked
        for base in cls.__mro__[-2:0:-1]:
            if (of_base := base.__dict__.get("__shape__")) is not None:
                self._inherit(of_base)
        for name, type_ in cls.__annotations__.items():
            if not type_.startswith("ClassVar"):
                self._add(cls, name, type_, kw_only)
        self.positional = tuple(name for name in self.types if name not in self.named)

    def _inherit(self, other: _Shape) -> None:
        self.types |= other.types
        self.defaults |= other.defaults
        self.factories |= other.factories
        self.named |= other.named

    def _add(self, cls: type, name: str, type_: str, kw_only: bool) -> None:
        self.types[name] = type_
        self.defaults.pop(name, None)
        self.factories.pop(name, None)
        (self.named.add if kw_only else self.named.discard)(name)
        default = getattr(cls, name, _MISSING)
        if isinstance(default, _Made):
            self.factories[name] = default.factory
            delattr(cls, name)
        elif default is not _MISSING:
            self.defaults[name] = default


@dataclass_transform(field_specifiers=(field,))
def dataclass(*, frozen: bool = False, eq: bool = True, kw_only: bool = False) -> Callable[[type[T]], type[T]]:
    """As dataclasses.dataclass(...), of annotations that are text. There is no `slots`, no `order`, and a field has a default
    or a factory of it."""

    def complete(cls: type[T]) -> type[T]:
        own = cls.__dict__
        shape = _Shape(cls, kw_only=kw_only, frozen=frozen)
        methods: dict[str, Any] = {
            "__shape__": shape,
            "__init__": _init(cls, shape),
            "__repr__": _repr,
            "__match_args__": shape.positional,
            "__signature__": _SIGNATURE,
            "__dataclass_fields__": _Standard("__dataclass_fields__", shape),
            "__dataclass_params__": _Standard("__dataclass_params__", shape),
        }
        if eq:
            methods |= _comparison(tuple(shape.types), hashable=frozen)
        if frozen:
            methods |= _FROZEN
        for name, method in methods.items():
            if name not in own:
                setattr(cls, name, method)
        return cls

    return complete


def field_types(cls: Any) -> Mapping[str, str]:
    """Names of the fields of a class, or of an instance, and their annotations, which are text."""
    shape: _Shape = cls.__shape__
    return shape.types


def replace(instance: T, **changes: Any) -> T:
    """A copy with some fields changed, checked again."""
    return type(instance)(**{name: getattr(instance, name) for name in field_types(instance)} | changes)


def _init(cls: type, shape: _Shape) -> Callable[..., None]:
    positional, defaults, factories = shape.positional, shape.defaults, shape.factories
    count, names = len(positional), shape.types.keys()
    plain = count == len(names)
    # Where frozen does not reach; and an instance has no dict, which would take more than its fields, until somebody asks for it.
    # It gives None, so that `any` makes all calls.
    put = object.__setattr__
    made = 0

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        nonlocal made
        made += 1
        if made == OFTEN:
            cls.__init__ = _compiled(cls, shape)  # type: ignore[misc]
        if plain and len(args) == count and not kwargs:
            any(map(put, repeat(self), positional, args))
        else:
            values = defaults.copy()
            values.update(zip(positional, args, strict=False))
            values.update(kwargs)
            for name, make in factories.items():
                if name not in values:
                    values[name] = make()
            if (
                len(values) != len(names)
                or len(args) > count
                or (kwargs and not (values.keys() == names and kwargs.keys().isdisjoint(positional[: len(args)])))
            ):
                raise TypeError(f"{type(self).__name__}(): {_wrong_call(shape, values.keys(), args, kwargs)}")
            any(map(put, repeat(self), values, values.values()))
        if (check := getattr(self, "__post_init__", None)) is not None:
            check()

    return __init__


def _compiled(cls: type, shape: _Shape) -> Callable[..., None]:
    """The same for this class alone, as the standard library's `__init__`. No field has a name like those that it uses."""
    known: dict[str, Any] = {"__put__": object.__setattr__, "__missing__": _MISSING}
    parameters, body = ["self"], []
    for at, name in enumerate((*shape.positional, *(name for name in shape.types if name in shape.named))):
        if at == len(shape.positional):
            parameters.append("*")
        value = name
        if name in shape.factories:
            known[f"__make{at}__"] = shape.factories[name]
            parameters.append(f"{name}=__missing__")
            value = f"__make{at}__() if {name} is __missing__ else {name}"
        elif name in shape.defaults:
            known[f"__default{at}__"] = shape.defaults[name]
            parameters.append(f"{name}=__default{at}__")
        else:
            parameters.append(name)
        body.append(f" __put__(self, {name!r}, {value})" if shape.frozen else f" self.{name} = {value}")
    body.append(" if (__check__ := getattr(self, '__post_init__', None)) is not None: __check__()")
    exec("\n".join((f"def __init__({', '.join(parameters)}):", *body)), known)
    init: Callable[..., None] = known["__init__"]
    init.__qualname__ = f"{cls.__qualname__}.__init__"
    return init


def _wrong_call(shape: _Shape, values: Set[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    names, positional = shape.types.keys(), shape.positional
    if unknown := sorted(values - names):
        return f"unexpected arguments: {', '.join(unknown)}"
    if missing := sorted(names - values):
        return f"missing arguments: {', '.join(missing)}"
    if len(args) > len(positional):
        return f"{len(args)} positional arguments where there are {len(positional)}"
    return f"given twice: {', '.join(name for name in positional[: len(args)] if name in kwargs)}"


def _comparison(names: tuple[str, ...], *, hashable: bool) -> dict[str, Any]:
    values: Callable[[Any], Any] = attrgetter(*names) if names else type

    def __eq__(self: Any, other: object) -> bool:  # noqa: N807
        return values(self) == values(other) if type(self) is type(other) else NotImplemented

    def __hash__(self: Any) -> int:  # noqa: N807
        return hash(values(self))

    return {"__eq__": __eq__, "__hash__": __hash__ if hashable else None}


def _repr(self: Any) -> str:
    values = ", ".join(f"{name}={getattr(self, name)!r}" for name in field_types(self))
    return f"{type(self).__qualname__}({values})"


def _refuse_to_set(self: object, name: str, _value: object) -> None:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_to_delete(self: object, name: str) -> None:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot delete field {name!r}")


_FROZEN = {"__setattr__": _refuse_to_set, "__delattr__": _refuse_to_delete}


# -- for those who look at a class


class _Standard:
    """An attribute that the standard library gives a class of its own: that of one with the same fields."""

    def __init__(self, name: str, shape: _Shape) -> None:
        self._name = name
        self._shape = shape

    def __get__(self, _instance: object, _cls: object) -> Any:
        import dataclasses

        shape = self._shape
        if shape.same is None:
            fields = [(name, kind, _standard_field(shape, name)) for name, kind in shape.types.items()]
            shape.same = dataclasses.make_dataclass(
                "Same", fields, init=False, repr=False, eq=False, frozen=shape.frozen
            )
        return getattr(shape.same, self._name)


def _standard_field(shape: _Shape, name: str) -> Any:
    import dataclasses

    by_name = name in shape.named
    if name in shape.factories:
        return dataclasses.field(default_factory=shape.factories[name], kw_only=by_name)
    return dataclasses.field(default=shape.defaults.get(name, dataclasses.MISSING), kw_only=by_name)


class _LazySignature:
    """The call's signature, for help() and inspect."""

    def __get__(self, _instance: object, cls: Any) -> Signature:
        from inspect import Signature

        shape: _Shape = cls.__shape__
        names = [*shape.positional, *(name for name in shape.types if name in shape.named)]
        return Signature([_parameter(shape, name) for name in names], return_annotation=None)


def _parameter(shape: _Shape, name: str) -> Parameter:
    from inspect import Parameter

    kind = Parameter.KEYWORD_ONLY if name in shape.named else Parameter.POSITIONAL_OR_KEYWORD
    default = shape.factories[name]() if name in shape.factories else shape.defaults.get(name, Parameter.empty)
    return Parameter(name, kind, default=default, annotation=shape.types[name])


_SIGNATURE = _LazySignature()
