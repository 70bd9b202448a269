"""Pointers that keep what they point at.

A cffi object made by `ffi.new` or `ffi.from_buffer` owns its memory. What `ffi.addressof` and `ffi.cast` give does not, nor does
a pointer read back from a structure: when the last owner goes, such a pointer reads and writes what belongs to somebody
else by then. And a structure that native code walks does not keep what its fields point at. So both are made here and nowhere
else (tests/native/test_owners.py looks), and here a pointer without an owner is refused:

- `view`, `placed` and `part`: a pointer into a buffer, or to a field of a structure, which keeps it;
- `link`: store pointers in a structure; what they point at lives as long as it does, or until the next `link`;
- `keep`: the same for what a structure knows by its address only;
- `address`: a bare number, for a system call that is over when the owner, a local variable, still stands.
"""

from __future__ import annotations

import functools
from typing import Any
from weakref import WeakKeyDictionary

from aiovmm.native import ffi

__all__ = ["address", "drop", "keep", "link", "part", "placed", "pointers", "view"]

_links: WeakKeyDictionary[Any, dict[Any, Any]] = WeakKeyDictionary()


def _forget(_owner: Any, _pointer: Any) -> None:
    """The end of a pointer that was held with its owner, which goes with this call's arguments."""


_owning = {
    type(ffi.new("uint32_t *")),
    type(ffi.from_buffer(bytearray(1))),
    type(ffi.gc(ffi.NULL, functools.partial(_forget, None))),
}


def view(buffer: Any, ctype: str = "uint8_t[]", start: int = 0) -> Any:
    """The memory of a bytearray, a mapping or any other buffer as `ctype`, a pointer from `start` on; keeps it, and keeps it from
    being resized. Of a memoryview for a moment only: one that is garbage in a cycle while somebody has a view of it ends the
    process (CPython clears it and then uses it)."""
    if ctype == "uint8_t[]":
        return ffi.from_buffer(ctype, buffer)
    holder = ffi.from_buffer(buffer)
    return ffi.gc(ffi.cast(ctype, ffi.cast("uint8_t *", holder) + start), functools.partial(_forget, holder))


def placed(buffer: Any) -> tuple[Any, int]:
    """`view` of all of it, and where that is, a number that is right for as long as the view is kept."""
    pointer = ffi.from_buffer("uint8_t[]", buffer)
    return pointer, int(ffi.cast("uintptr_t", pointer))


def part(owner: Any, *fields: str | int) -> Any:
    """A pointer to a field of the structure (or an element of the array) `owner`, which it keeps. Raises TypeError."""
    _check(owner)
    target = owner if isinstance(fields[0], int) else owner[0]
    return ffi.gc(ffi.addressof(target, *fields), functools.partial(_forget, owner))


def link(struct: Any, **fields: Any) -> None:
    """Store pointers in the structure's fields; it keeps what they point at. A field that is an array of pointers takes a
    sequence of them. Raises TypeError for a pointer, or a structure, that owns nothing."""
    _check(struct)
    kept = _kept(struct)
    for name, pointer in fields.items():
        for one in pointer if isinstance(pointer, (list, tuple)) else (pointer,):
            _check(one)
        setattr(struct, name, pointer)
        kept[name] = pointer


def keep(owner: Any, *things: Any) -> None:
    """`things` live as long as the structure `owner`. Raises TypeError if that owns nothing."""
    _check(owner)
    _kept(owner).setdefault(None, []).extend(things)


def drop(owner: Any) -> None:
    """The structure `owner` keeps nothing any more; what it points at must not be used through it after this."""
    _links.pop(owner, None)


def _kept(owner: Any) -> dict[Any, Any]:
    kept = _links.get(owner)
    if kept is None:
        kept = _links[owner] = {}
    return kept


def pointers(ctype: str, items: list[Any], owner: Any) -> Any:
    """An array `ctype` of bare pointers into what native code has allocated for `owner`, a structure, which the array keeps."""
    array = ffi.new(ctype, items)
    keep(array, owner)
    return array


def address(owner: Any) -> int:
    """The address of what `owner` points at. It keeps nothing: the caller holds the owner for as long as the number is used."""
    _check(owner)
    return int(ffi.cast("uintptr_t", owner))


def _check(pointer: Any) -> None:
    if type(pointer) not in _owning and pointer != ffi.NULL:
        raise TypeError(f"{pointer!r} does not own what it points at, so that may go before it")
