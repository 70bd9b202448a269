"""An input as a string of numbers, each taken when it is asked for, zero at its end; and what its refusal has to be like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["Source", "refused"]

T = TypeVar("T")


class Source:
    """See the module."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def number(self, size: int = 1) -> int:
        """Of `size` bytes, little-endian."""
        return int.from_bytes(self.take(size), "little")

    def below(self, limit: int) -> int:
        """From 0 to `limit` - 1."""
        return self.number(1 if limit <= 256 else 4) % limit

    def take(self, size: int) -> bytes:
        """That many, or what is left."""
        self._at += size
        return self._data[self._at - size : self._at]

    def some(self, most: int = 255) -> bytes:
        """A string of its own length."""
        return self.take(self.below(most + 1))

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data))

    def one(self, choices: Sequence[T]) -> T:
        """One of them."""
        return choices[self.below(len(choices))]


@contextmanager
def refused(*errors: type[Exception], saying: str = "") -> Iterator[None]:
    """It may be, by one of these errors, in a line that says something."""
    try:
        yield
    except errors as exc:
        text = str(exc)
        if not text or "\n" in text or saying not in text:
            raise AssertionError(f"{exc!r} does not say what is wrong") from exc
