"""Values of the wrong type are refused when a configuration is made, or made what the command line would make of them.

The kinds of a field are read from its annotation, which is text: `int`, `str | None`, `tuple[DiskConfig, ...]`.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

from aiovmm.errors import ConfigError
from aiovmm.runtime.dataclass import dataclass as plain_dataclass

__all__ = ["dataclass"]

T = TypeVar("T")
_SIZES = {"size", "buffer_size", "history"}  # whole numbers of bytes, which the command line takes with a suffix
_PARSED = {  # what stands for a whole class: text in its syntax
    "CpusConfig": "parse_cpus",
    "MemoryConfig": "parse_memory",
    "RngConfig": "parse_rng",
    "DiskConfig": "parse_disk",
    "NetConfig": "parse_net",
    "VsockConfig": "parse_vsock",
    "PmemConfig": "parse_pmem",
    "FsConfig": "parse_fs",
    "DeviceConfig": "parse_device",
    "PlatformConfig": "parse_platform",
}
_REFUSED = object()


@dataclass_transform(field_specifiers=(dataclasses.field,), frozen_default=True)
def dataclass(*, frozen: bool = True, kw_only: bool = False) -> Callable[[type[T]], type[T]]:
    """As aiovmm.runtime.dataclass, with the fields' types checked before `__post_init__`."""

    def complete(cls: type[T]) -> type[T]:
        made = plain_dataclass(frozen=frozen, kw_only=kw_only)(cls)
        check = getattr(made, "__post_init__", None)
        names = vars(sys.modules[cls.__module__])
        option = cls.__name__.removesuffix("Config").lower()
        prefix = "" if option == "vm" else f"{option}."

        def settle(self: Any) -> None:
            _settle(self, prefix, names)
            if check is not None:
                check(self)

        made.__post_init__ = settle  # type: ignore[attr-defined]
        return made

    return complete


def _settle(config: Any, prefix: str, names: Mapping[str, Any]) -> None:
    values = config.__dict__
    for field in dataclasses.fields(config):
        value = values[field.name]
        kinds = str(field.type).split(" | ")
        if any(kind.count("[") != kind.count("]") for kind in kinds):
            continue
        for kind in kinds:
            settled = _as(kind, value, prefix + field.name, names)
            if settled is not _REFUSED:
                values[field.name] = settled
                break
        else:
            raise ConfigError(prefix + field.name, f"{value!r} is not {' or '.join(map(_words, kinds))}", _hint(value))


def _words(kind: str) -> str:
    if kind.startswith("tuple["):
        return f"a list of {_words(_inner(kind))}"
    known = {"int": "a whole number", "bool": "True or False", "str": "text", "Path": "a path", "float": "a number"}
    return known.get(kind, kind)


def _hint(value: object) -> str:
    return f"give an object of it: {value.__name__}(...)" if isinstance(value, type) else ""


def _as(kind: str, value: Any, option: str, names: Mapping[str, Any]) -> Any:
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
            return Path(value) if isinstance(value, str | os.PathLike) else _REFUSED
    if kind.startswith("tuple["):
        inner = _inner(kind)
        if not isinstance(value, list | tuple):
            return _REFUSED
        return tuple(_item(inner, item, f"{option}[{i}]", names) for i, item in enumerate(value))
    return _made(kind, value, option, names)


def _inner(kind: str) -> str:
    return kind.removeprefix("tuple[").removesuffix(", ...]")


def _item(kind: str, value: Any, option: str, names: Mapping[str, Any]) -> Any:
    settled = _as(kind, value, option, names)
    if settled is _REFUSED:
        raise ConfigError(option, f"{value!r} is not {_words(kind)}", _hint(value))
    return settled


def _whole(value: Any, option: str) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and option.rpartition(".")[2] in _SIZES:
        from aiovmm.config.text import to_size

        return to_size(option, value)
    return _REFUSED


def _made(kind: str, value: Any, option: str, names: Mapping[str, Any]) -> Any:
    cls = names.get(kind)
    if not isinstance(cls, type):  # an annotation that is none of the above is not checked
        return value
    if isinstance(value, cls):
        return value
    if issubclass(cls, enum.Enum):
        return next((member for member in cls if member.value == value), _REFUSED)
    if kind == "ConsoleConfig" and isinstance(value, str):
        from aiovmm.config.options import parse_console

        return parse_console(option, value)
    if kind in _PARSED and isinstance(value, str | int) and not isinstance(value, bool):
        from aiovmm.config import options

        return getattr(options, _PARSED[kind])(str(value))
    return _REFUSED
