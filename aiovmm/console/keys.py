"""The keys that detach a terminal: their text form, and a matcher that picks them out of what is typed."""

from __future__ import annotations

from aiovmm.errors import ConfigError

__all__ = ["DEFAULT_DETACH", "DetachKeys", "format_keys", "parse_keys"]

DEFAULT_DETACH = b"\x10\x11"
"""ctrl-p ctrl-q"""

_CONTROL = "@abcdefghijklmnopqrstuvwxyz[\\]^_"
_HINT = "write for example ctrl-p,ctrl-q or none"


def parse_keys(text: str, option: str = "detach-keys") -> bytes:
    """`ctrl-p,ctrl-q` as bytes: keys are `ctrl-` and one of a-z @ [ \\ ] ^ _, or one printable character; `none` is b""."""
    if text in ("", "none"):
        return b""
    return bytes(_key(item, option) for item in text.split(","))


def format_keys(keys: bytes) -> str:
    """The inverse of `parse_keys`."""
    return ",".join(f"ctrl-{_CONTROL[key]}" if key < 32 else chr(key) for key in keys) or "none"


def _key(item: str, option: str) -> int:
    name = item.lower().removeprefix("ctrl-")
    if name != item.lower() and len(name) == 1 and name in _CONTROL:
        return _CONTROL.index(name)
    if len(item) == 1 and "!" <= item <= "~":
        return ord(item)
    raise ConfigError(option, f"{item!r} is not a key", _HINT)


class DetachKeys:
    """Finds `keys` in what is typed. What may be their beginning is held back until the next key, or `flush`, tells."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""

    @property
    def holding(self) -> bool:
        """Whether keys were typed with which those may begin that detach."""
        return bool(self._held)

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What is to be forwarded of `data`, and whether the keys were typed (what follows them is dropped)."""
        typed = self._held + data
        self._held = b""
        if not self._keys:
            return typed, False
        index = typed.find(self._keys)
        if index >= 0:
            return typed[:index], True
        held = self._prefix_at_end(typed)
        self._held = typed[len(typed) - held :]
        return typed[: len(typed) - held], False

    def flush(self) -> bytes:
        """Give up what is held: it was no more than itself."""
        held, self._held = self._held, b""
        return held

    def _prefix_at_end(self, typed: bytes) -> int:
        for length in range(min(len(self._keys) - 1, len(typed)), 0, -1):
            if typed.endswith(self._keys[:length]):
                return length
        return 0
