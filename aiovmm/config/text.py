"""The grammar of option text, one for all options.

    text  := part ("," part)*
    part  := key "=" value | word
    value := characters, "quoted text" and [lists]

A comma inside quotes or brackets, nested to any depth, separates nothing. Quotes are taken off; a quote inside quotes is written
twice. A list is `[1,4-7]`, or one element without brackets; pairs are `[0@[1,3],1@2]`. Numbers are decimal, whatever they begin
with, or 0x and hexadecimal; sizes take the suffixes K, M, G, T (powers of 1024); switches are on, off, true, false.
Every function takes the option's name for its error, and raises nothing but ConfigError.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiovmm.errors import ConfigError
from aiovmm.runtime.remarks import remark

__all__ = [
    "Converter",
    "split_options",
    "to_bool",
    "to_int",
    "to_ints",
    "to_pairs",
    "to_path",
    "to_seconds",
    "to_size",
    "to_text",
    "to_words",
    "unquote",
]

Converter = Callable[[str, str], Any]
"""(option, text as it was given) -> the value."""

_NUMBER = re.compile(r"0x([0-9a-f]{1,16})|\+?0*([0-9]{1,20})", re.ASCII | re.IGNORECASE)
_SIZE = re.compile(r"(0x[0-9a-f]{1,16}|\+?[0-9]+)([kmgt]?)", re.ASCII | re.IGNORECASE)
_SHIFT = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')
_LONGEST_LIST = 1 << 16
MAX_SIZE = 1 << 62


def split_options(option: str, text: str) -> dict[str, str | None]:
    """`a=1,b=[2,[3,4]],c` as {"a": "1", "b": "[2,[3,4]]", "c": None}, values as they were given, quotes and all."""
    values: dict[str, str | None] = {}
    for part in _parts(option, text) if (text := text.strip()) else ():
        key, separator, value = part.partition("=")
        value = value.strip()
        if not key:
            raise ConfigError(option, f"{text!r} has a part without a name", f"like {option} key=value,key=value")
        said = value if separator else None
        if key in values and values[key] != said:
            _remark_on_the_second(option, key, said)
        values[key] = said
    return values


def _remark_on_the_second(option: str, key: str, value: str | None) -> None:
    """Launchers append what is to hold: the last one does, as in the reference."""
    remark(f"{option}.{key}: is given twice, and the last holds: {repr(value) if value else 'nothing'}")


def _parts(option: str, text: str) -> list[str]:
    """Between the commas that separate."""
    parts, begin, depth, quoted = [], 0, 0, False
    for at, char in enumerate(text):
        if char == '"':
            quoted = not quoted
        elif quoted:
            continue
        elif char in "[]":
            depth += 1 if char == "[" else -1
            if depth < 0:
                break
        elif char == "," and not depth:
            parts.append(text[begin:at])
            begin = at + 1
    if quoted:
        raise ConfigError(
            option, f"{text!r} has a quote that is not closed", 'inside quotes a quote is written twice, ""'
        )
    if depth:
        raise ConfigError(
            option, f"{text!r} has a bracket without its other", "put text with brackets into double quotes"
        )
    return [*parts, text[begin:]]


def unquote(text: str) -> str:
    """Without the quotes, but for those that were meant."""
    return _QUOTED.sub(lambda match: match[1].replace('""', '"'), text)


def to_int(option: str, text: str) -> int:
    """`010` is ten, and `0x10` sixteen. Below 2**64."""
    match = _NUMBER.fullmatch(unquote(text))
    value = -1 if match is None else int(match[1], 16) if match[1] else int(match[2])
    if not 0 <= value < 1 << 64:
        raise ConfigError(option, f"{text!r} is not a number")
    return value


def to_size(option: str, text: str) -> int:
    """`512M` in bytes."""
    match = _SIZE.fullmatch(unquote(text))
    if match is None:
        raise ConfigError(option, f"{text!r} is not a size", "like 512M or 2G")
    size = to_int(option, match[1]) << _SHIFT[match[2].upper()]
    if size > MAX_SIZE:
        raise ConfigError(option, f"{text!r} is more than any machine has")
    return size


def to_seconds(option: str, text: str) -> float:
    """`90`, `1.5`, in seconds."""
    try:
        return float(unquote(text))
    except ValueError:
        raise ConfigError(option, f"{text!r} is no number of seconds", "like 90 or 1.5") from None


def to_bool(option: str, text: str) -> bool:
    """on/off/true/false."""
    word = unquote(text).lower()
    if word not in ("on", "true", "off", "false"):
        raise ConfigError(option, f"{text!r} is neither on nor off")
    return word in ("on", "true")


def to_text(option: str, text: str) -> str:
    """As it is."""
    return unquote(text)


def to_path(option: str, text: str) -> Path:
    """A file name; of any bytes but none, since they all can be."""
    path = unquote(text)
    if not path:  # in quotes, else it were not set: it is not the directory that this process is in
        raise ConfigError(option, "is an empty path")
    return Path(path)


def _elements(option: str, text: str) -> list[str]:
    inner = text if text.startswith("[") else unquote(text)
    if inner.startswith("[") and inner.endswith("]"):
        inner = inner[1:-1]
    return [part.strip() for part in _parts(option, inner)] if inner.strip() else []


def to_words(option: str, text: str) -> tuple[str, ...]:
    """`[a,b]`."""
    return tuple(unquote(word) for word in _elements(option, text))


def to_ints(option: str, text: str) -> tuple[int, ...]:
    """`[1,4-7]`: numbers and ranges of them, both ends included."""
    numbers: list[int] = []
    for element in _elements(option, text):
        first, separator, last = element.partition("-")
        if separator and not first:
            raise ConfigError(option, f"{element!r} is not a number")
        low = to_int(option, first)
        high = to_int(option, last) if separator else low
        if high < low:
            raise ConfigError(option, f"the range {element!r} ends before it begins")
        if len(numbers) + high - low >= _LONGEST_LIST:
            raise ConfigError(option, f"{text!r} names more than {_LONGEST_LIST} numbers")
        numbers += range(low, high + 1)
    return tuple(numbers)


def to_pairs(option: str, text: str) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """`[0@[0-1],1@[2]]`: numbers, each with a list of them. Of a number that is there twice the last holds, as of a key."""
    pairs: dict[int, tuple[int, ...]] = {}
    for element in _elements(option, text):
        left, separator, right = element.partition("@")
        if not separator:
            raise ConfigError(option, f"{element!r} is no pair", "like [0@[0-1],1@[2,3]]")
        number, values = to_int(option, left), to_ints(option, right)
        if pairs.get(number, values) != values:
            _remark_on_the_second(option, str(number), right)
        pairs[number] = values
    return tuple(pairs.items())
