"""What is the same for all guests that are alike, made for the first of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["Prepared"]

T = TypeVar("T")


class Prepared(Generic[T]):
    """At most `limit` things by their keys; the oldest makes room. From any thread: two that want the same at once may both make
    it, and one is kept. Nothing in it may be changed, and a key says all that a thing depends on."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._made: dict[Hashable, T] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The one for `key`. What `make` raises is raised each time."""
        made = self.find(key)
        return self.keep(key, make()) if made is None else made

    def find(self, key: Hashable) -> T | None:
        """The one for `key`, if it has been made."""
        return self._made.get(key)

    def keep(self, key: Hashable, made: T) -> T:
        """The one for `key` is this from now on, unless there is one already, which it gives."""
        made = self._made.setdefault(key, made)
        while len(self._made) > self._limit:
            try:
                del self._made[next(iter(self._made))]
            except (KeyError, RuntimeError, StopIteration):  # another thread made room
                break
        return made
