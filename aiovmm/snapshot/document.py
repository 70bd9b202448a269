"""Plain state as text: JSON, with bytes as `{"$hex": ...}` or `{"$base64": ...}`, and a checksum in the first line.

The checksum finds damage, not malice: whoever can write the file can write another checksum. So what is read is still input.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

from aiovmm.errors import SnapshotError
from aiovmm.runtime.plain import Plain, State

__all__ = ["LARGEST", "MOST_PARTS", "decode", "encode", "identity", "parts"]

LARGEST = 64 << 20
"""Bytes of a document: a guest with 4,096 processors has less."""

MOST_PARTS = 2_000_000
"""Lists and objects in it, each of which takes twenty times the memory of its text: four times what such a guest has."""

_HEX, _BASE64 = "$hex", "$base64"
_SHORT = 64  # bytes that a human may want to look at
_HEAD, _SUM = b'{"sha256": "', 64
_ROW = re.compile(r'\[\s+((?:-?\d+|"[^"\\\n]*")(?:,\s+(?:-?\d+|"[^"\\\n]*"))*)\s+\]')


def encode(state: State) -> bytes:
    """The document. Raises TypeError for what is not plain."""
    text = json.dumps(_to_json(state), indent=1, allow_nan=False)
    body = b'",' + _ROW.sub(_in_a_line, text).removeprefix("{").encode() + b"\n"
    return _HEAD + hashlib.sha256(body).hexdigest().encode() + body


def decode(document: bytes) -> State:
    """The inverse. Raises SnapshotError for any damage."""
    start = len(_HEAD) + _SUM
    if not document.startswith(_HEAD):
        raise SnapshotError("the file does not begin as a snapshot's state does: it is none, or it is damaged")
    if hashlib.sha256(document[start:]).hexdigest().encode() != document[len(_HEAD) : start]:
        raise SnapshotError("the checksum is not that of what follows: the file is damaged, or was edited")
    if parts(document) > MOST_PARTS:
        raise SnapshotError(f"the file has more than {MOST_PARTS} lists and objects, which no state has")
    try:
        value = json.loads(document, parse_float=_refuse, parse_constant=_refuse, object_pairs_hook=_from_pairs)
    except (ValueError, RecursionError) as exc:
        raise SnapshotError(f"the file is no JSON text: {exc}") from exc
    if not isinstance(value, dict):
        raise SnapshotError("the file holds no state")
    del value["sha256"]
    return value


def parts(document: bytes) -> int:
    """How many lists and objects there are at most."""
    return document.count(b"[") + document.count(b"{")


def identity(document: bytes) -> str:
    """What tells a document that can be decoded from all others: its checksum, by its hexadecimal digits."""
    return document[len(_HEAD) : len(_HEAD) + _SUM].decode()


def _in_a_line(row: re.Match[str]) -> str:
    return f"[{' '.join(row[1].split())}]"


def _to_json(value: Plain) -> Any:
    if isinstance(value, dict):
        return {_key(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_to_json(item) for item in value]
    if isinstance(value, bytes):
        if len(value) <= _SHORT:
            return {_HEX: value.hex()}
        return {_BASE64: base64.b64encode(value).decode()}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise TypeError(f"{value!r} is no plain state")


def _key(key: Any) -> str:
    if not isinstance(key, str) or key.startswith("$") or key == "sha256":
        raise TypeError(f"{key!r} is no name for a field of state")
    return key


def _from_pairs(pairs: list[tuple[str, Any]]) -> Any:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a field is there twice")
    if len(fields) == 1:
        ((key, value),) = fields.items()
        if key == _HEX and isinstance(value, str):
            return bytes.fromhex(value)
        if key == _BASE64 and isinstance(value, str):
            return base64.b64decode(value, validate=True)
    if any(key.startswith("$") for key in fields):
        raise ValueError("bytes that are neither hex nor base64")
    return fields


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is no whole number")
