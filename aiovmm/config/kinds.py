"""Values of the wrong type are refused when a configuration is made, or made what the command line would make of them.

The kinds of a field are read from its annotation, which is text: `int`, `str | None`, `tuple[DiskConfig, ...]`.
"""

from __future__ import annotations

import enum
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

from aiovmm.errors import ConfigError
from aiovmm.runtime.dataclass import dataclass as plain_dataclass
from aiovmm.runtime.dataclass import field, field_types

__all__ = ["dataclass"]

T = TypeVar("T")
Parser = Callable[[str, str, str], Any]
_SIZES = {
    "size",
    "hugepage_size",
    "buffer_size",
    "history",
    "hotplug_size",
    "hotplugged_size",
}  # whole numbers of bytes, which the command line takes with a suffix
_REFUSED = object()


@dataclass_transform(field_specifiers=(field,), frozen_default=True)
def dataclass(
    *, frozen: bool = True, kw_only: bool = False, parse: Parser | None = None
) -> Callable[[type[T]], type[T]]:
    """As aiovmm.runtime.dataclass, with the fields' types checked before `__post_init__`. `parse(kind, option, text)` makes
    text in the command line's syntax an object of the class `kind`, or raises LookupError for a class that has none."""

    def complete(cls: type[T]) -> type[T]:
        made = plain_dataclass(frozen=frozen, kw_only=kw_only)(cls)
        check = getattr(made, "__post_init__", None)
        option = re.sub("(?<=[a-z])(?=[A-Z])", "_", cls.__name__.removesuffix("Config")).lower()
        prefix = "" if option == "vm" else f"{option}."
        kinds = _Kinds(vars(sys.modules[cls.__module__]), parse)

        shape: list[_Field] = []

        def settle(self: Any) -> None:
            if not shape:  # the annotations are taken apart when there is the first one
                shape.extend(_Field(name, annotation, prefix) for name, annotation in field_types(self).items())
            _settle(self, shape, kinds)
            if check is not None:
                check(self)

        made.__post_init__ = settle  # type: ignore[attr-defined]
        return made

    return complete


class _Field:
    """A field, and what can be in it."""

    def __init__(self, name: str, annotation: str, prefix: str) -> None:
        kinds = annotation.split(" | ")
        self.name, self.option = name, prefix + name
        self.kinds = [] if any(kind.count("[") != kind.count("]") for kind in kinds) else kinds
        self.as_it_is: set[type] = set()
        """Of values that are taken as they are, whatever they are: found out by the first of them."""

    def learn(self, kind: str, value: Any) -> None:
        """`value` was taken as it is: by the first kind, so that only its type counts, unless it has parts."""
        if (kind == self.kinds[0] or value is None) and not isinstance(value, tuple):
            self.as_it_is.add(type(value))


def _settle(config: Any, shape: Iterable[_Field], known: _Kinds) -> None:
    values = config.__dict__
    for part in shape:
        value = values[part.name]
        if type(value) in part.as_it_is or not part.kinds:
            continue
        for kind in part.kinds:
            settled = known.made(kind, value, part.option)
            if settled is not _REFUSED:
                values[part.name] = settled
                if settled is value:
                    part.learn(kind, value)
                break
        else:
            raise ConfigError(part.option, f"{value!r} is not {' or '.join(map(_words, part.kinds))}", _hint(value))


def _words(kind: str) -> str:
    if kind.startswith("tuple["):
        kinds = _parts(kind)
        return f"a list of {_words(kinds[0])}" if kinds[-1] == "..." else f"({', '.join(map(_words, kinds))})"
    known = {"int": "a whole number", "bool": "True or False", "str": "text", "Path": "a path", "float": "a number"}
    return known.get(kind, kind)


@cache
def _parts(kind: str) -> Sequence[str]:
    """What a tuple's annotation has between its brackets."""
    parts, depth = [""], 0
    for character in kind.removeprefix("tuple[").removesuffix("]"):
        depth += {"[": 1, "]": -1}.get(character, 0)
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _hint(value: object) -> str:
    return f"give an object of it: {value.__name__}(...)" if isinstance(value, type) else ""


class _Kinds:
    """What annotations of one module name, and how text is made of them."""

    def __init__(self, names: Mapping[str, Any], parse: Parser | None) -> None:
        self._names = names
        self._parse = parse

    def made(self, kind: str, value: Any, option: str) -> Any:
        """`value` as a `kind`, or _REFUSED."""
        match kind:
            case "None":
                return value if value is None else _REFUSED
            case "bool":
                return value if isinstance(value, bool) else _REFUSED
            case "int":
                return _whole(value, option)
            case "float":
                return value if isinstance(value, int | float) and not isinstance(value, bool) else _REFUSED
            case "str":
                return value if isinstance(value, str) else _REFUSED
            case "Path":
                if isinstance(value, Path):
                    return value
                if value == "":  # a variable that nobody has set is not the directory that this process is in
                    raise ConfigError(option, "is an empty path")
                return Path(value) if isinstance(value, str | os.PathLike) else _REFUSED
        if kind.startswith("tuple["):
            return self._items(_parts(kind), value, option)
        return self._object(kind, value, option)

    def _items(self, kinds: Sequence[str], value: Any, option: str) -> Any:
        if not isinstance(value, list | tuple):
            return _REFUSED
        if value == () and kinds[-1] == "...":
            return value
        if kinds[-1] == "...":
            kinds = [kinds[0]] * len(value)
        elif len(kinds) != len(value):
            return _REFUSED
        return tuple(
            self._item(kind, item, f"{option}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )

    def _item(self, kind: str, value: Any, option: str) -> Any:
        settled = self.made(kind, value, option)
        if settled is _REFUSED:
            raise ConfigError(option, f"{value!r} is not {_words(kind)}", _hint(value))
        return settled

    def _object(self, kind: str, value: Any, option: str) -> Any:
        cls = self._names.get(kind)
        if not isinstance(cls, type):  # an annotation that is none of the above is not checked
            return value
        if isinstance(value, cls):
            return value
        if issubclass(cls, enum.Enum):
            return next((member for member in cls if member.value == value), _REFUSED)
        if self._parse is not None and isinstance(value, str | int) and not isinstance(value, bool):
            try:
                return self._parse(kind, option, str(value))
            except LookupError:
                pass
        return _REFUSED


def _whole(value: Any, option: str) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and option.rpartition(".")[2] in _SIZES:
        from aiovmm.config.text import to_size

        return to_size(option, value)
    return _REFUSED
