"""What methods are made of: operands, expressions, statements (ACPI 6.4, 20.2.5.3, 20.2.5.4, 20.2.6).

An operand is encoded AML: `integer(5)`, `local(0)`, `arg(1)`, `name_string("STAT")` or another expression. `NOWHERE` as a
target drops the result.
"""

from __future__ import annotations

from aiovmm.boot.acpi.aml.encoding import name_string, package_of

__all__ = [
    "NOWHERE",
    "and_",
    "arg",
    "create_dword_field",
    "else_",
    "if_",
    "lequal",
    "lnot",
    "local",
    "notify",
    "or_",
    "return_",
    "shift_left",
    "store",
    "while_",
]

NOWHERE = b"\x00"  # NullName as a target

_LOCAL0, _ARG0 = 0x60, 0x68
_STORE, _SHIFT_LEFT, _AND, _OR = b"\x70", b"\x79", b"\x7b", b"\x7d"
_NOTIFY, _CREATE_DWORD_FIELD = b"\x86", b"\x8a"
_LNOT, _LEQUAL = b"\x92", b"\x93"
_IF, _ELSE, _WHILE, _RETURN = b"\xa0", b"\xa1", b"\xa2", b"\xa4"


def local(index: int) -> bytes:
    """Local0 to Local7."""
    if not 0 <= index <= 7:
        raise ValueError(f"there is no Local{index}")
    return bytes([_LOCAL0 + index])


def arg(index: int) -> bytes:
    """Arg0 to Arg6."""
    if not 0 <= index <= 6:
        raise ValueError(f"there is no Arg{index}")
    return bytes([_ARG0 + index])


def store(source: bytes, target: bytes) -> bytes:
    """target = source."""
    return _STORE + source + target


def and_(left: bytes, right: bytes, target: bytes = NOWHERE) -> bytes:
    """target = left & right, bitwise."""
    return _AND + left + right + target


def or_(left: bytes, right: bytes, target: bytes = NOWHERE) -> bytes:
    """target = left | right, bitwise."""
    return _OR + left + right + target


def shift_left(value: bytes, count: bytes, target: bytes = NOWHERE) -> bytes:
    """target = value << count."""
    return _SHIFT_LEFT + value + count + target


def lequal(left: bytes, right: bytes) -> bytes:
    """left == right."""
    return _LEQUAL + left + right


def lnot(value: bytes) -> bytes:
    """!value."""
    return _LNOT + value


def create_dword_field(source: bytes, offset: bytes, path: str) -> bytes:
    """CreateDWordField (source, offset, path): `path` names the 32 bits at byte `offset` of a buffer."""
    return _CREATE_DWORD_FIELD + source + offset + name_string(path)


def notify(target: str, value: bytes) -> bytes:
    """Notify (target, value): tell the operating system that something happened to a device (ACPI 6.4, 5.6.6)."""
    return _NOTIFY + name_string(target) + value


def if_(predicate: bytes, *terms: bytes) -> bytes:
    """If (predicate) { terms }; an `else_` may follow."""
    return package_of(_IF, predicate, *terms)


def else_(*terms: bytes) -> bytes:
    """Else { terms }, directly after an `if_`."""
    return package_of(_ELSE, *terms)


def while_(predicate: bytes, *terms: bytes) -> bytes:
    """While (predicate) { terms }."""
    return package_of(_WHILE, predicate, *terms)


def return_(value: bytes) -> bytes:
    """Return (value)."""
    return _RETURN + value
