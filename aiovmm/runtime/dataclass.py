"""`dataclass` for the modules that every start imports: it costs next to nothing to define one.

The standard library's writes `__init__`, `__repr__`, `__eq__` and more as text and compiles them for each class: 0.4 ms,
at each start, for a hundred classes. Here all classes share their methods. Fields are the standard library's own, so that
its `field`, `fields`, `replace`, `asdict` and the match statement work. An instance takes some 0.4 us longer to make:
a class of which a guest makes many (requests, packets) is better off with the standard library's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Set
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

if TYPE_CHECKING:
    from inspect import Parameter, Signature

__all__ = ["dataclass"]

T = TypeVar("T")
Fields = tuple[dataclasses.Field[Any], ...]


@dataclass_transform(field_specifiers=(dataclasses.field,))
def dataclass(*, frozen: bool = False, eq: bool = True, kw_only: bool = False) -> Callable[[type[T]], type[T]]:
    """As dataclasses.dataclass(...). There is no `slots`, no `order`, and of a field only the default may be given."""

    def complete(cls: type[T]) -> type[T]:
        made = dataclasses.dataclass(init=False, repr=False, eq=False, kw_only=kw_only)(cls)
        fields = dataclasses.fields(made)  # type: ignore[arg-type]
        methods: dict[str, Any] = {"__init__": _init(fields), "__repr__": _repr, "__signature__": _LazySignature()}
        if eq:
            methods |= _comparison(fields, hashable=frozen)
        if frozen:
            methods |= {"__setattr__": _refuse_to_set, "__delattr__": _refuse_to_delete}
        for name, method in methods.items():
            if name not in cls.__dict__:
                setattr(cls, name, method)
        return cls

    return complete


def _init(fields: Fields) -> Callable[..., None]:
    names = {field.name for field in fields}
    positional = [field.name for field in fields if not field.kw_only]
    defaults = {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
    factories = {f.name: f.default_factory for f in fields if f.default_factory is not dataclasses.MISSING}

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        values = self.__dict__  # where frozen does not reach
        values.update(defaults)
        values.update(zip(positional, args, strict=False))
        values.update(kwargs)
        for name, make in factories.items():
            if name not in values:
                values[name] = make()
        given = positional[: len(args)]
        if values.keys() != names or len(args) > len(given) or not kwargs.keys().isdisjoint(given):
            raise TypeError(f"{type(self).__name__}(): {_wrong_call(names, positional, values.keys(), args, kwargs)}")
        if (check := getattr(self, "__post_init__", None)) is not None:
            check()

    return __init__


def _wrong_call(
    names: Set[str], positional: list[str], values: Set[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str:
    if unknown := sorted(values - names):
        return f"unexpected arguments: {', '.join(unknown)}"
    if missing := sorted(names - values):
        return f"missing arguments: {', '.join(missing)}"
    if len(args) > len(positional):
        return f"{len(args)} positional arguments where there are {len(positional)}"
    return f"given twice: {', '.join(name for name in positional[: len(args)] if name in kwargs)}"


def _comparison(fields: Fields, *, hashable: bool) -> dict[str, Any]:
    names = [field.name for field in fields]
    values: Callable[[Any], Any] = attrgetter(*names) if names else type

    def __eq__(self: Any, other: object) -> bool:  # noqa: N807
        return values(self) == values(other) if type(self) is type(other) else NotImplemented

    def __hash__(self: Any) -> int:  # noqa: N807
        return hash(values(self))

    return {"__eq__": __eq__, "__hash__": __hash__ if hashable else None}


def _repr(self: Any) -> str:
    values = ", ".join(f"{field.name}={getattr(self, field.name)!r}" for field in dataclasses.fields(self))
    return f"{type(self).__qualname__}({values})"


def _refuse_to_set(self: object, name: str, _value: object) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_to_delete(self: object, name: str) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


class _LazySignature:
    """The call's signature, for help() and inspect."""

    def __get__(self, _instance: object, cls: Any) -> Signature:
        from inspect import Signature

        fields = sorted(dataclasses.fields(cls), key=lambda field: field.kw_only is True)
        return Signature([_parameter(field) for field in fields], return_annotation=None)


def _parameter(field: dataclasses.Field[Any]) -> Parameter:
    from inspect import Parameter

    kind = Parameter.KEYWORD_ONLY if field.kw_only else Parameter.POSITIONAL_OR_KEYWORD
    default = Parameter.empty
    if field.default is not dataclasses.MISSING:
        default = field.default
    elif field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    return Parameter(field.name, kind, default=default, annotation=field.type)
