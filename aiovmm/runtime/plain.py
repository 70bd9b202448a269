"""State as plain data: what a snapshot holds of a device, a register block or a ring, and how it is taken back in.

Whatever has state gives it by `save() -> State` and takes it by `load(state)`: dictionaries, lists, numbers, texts, booleans,
None and bytes, nothing else, so that one file that a human can read holds it, and a later version of ours can tell what to make
of it. State that is loaded is input: a file may have been damaged, or made by somebody hostile. It is read through `Fields`,
which names the place of whatever is wrong, and a `load` changes nothing before it has checked everything that it reads.

    def save(self) -> State:
        return {"index": self.index, "ram": bytes(self.ram)}

    def load(self, state: State) -> None:
        fields = Fields(state, "rtc")
        index, ram = fields.number("index", 0, 127), fields.data("ram", 128)
        fields.end()                                # nothing is there that nobody reads
        self.index, self.ram[:] = index, ram
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from aiovmm.errors import SnapshotError

__all__ = ["Fields", "Plain", "Saved", "State", "copied", "kept", "once"]

T = TypeVar("T")

Plain = Any
"""None, bool, int, str, bytes, a list of such, or a dict of such by texts."""

_PLAIN = "plain are None, bool, int, str, bytes, lists, and dicts by texts"

State = dict[str, Plain]
"""Of one thing, by the names of its fields."""


def copied(value: Plain, where: str) -> Plain:
    """The same, of which nobody else has a part. Raises SnapshotError for what is not plain, which `where` names."""
    if isinstance(value, dict):
        return {_name(key, where): copied(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [copied(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int, str, bytes)):
        return value
    raise SnapshotError(f"{where} is {type(value).__name__}, which no snapshot can have: {_PLAIN}")


class _Kept(dict[str, Plain]):
    """State that nobody changes, with what was read from it."""

    __slots__ = ("read",)

    def __init__(self, state: State) -> None:
        super().__init__({name: _with_parts_kept(value) for name, value in state.items()})
        self.read: dict[Hashable, Any] = {}


def kept(state: State) -> State:
    """The same, to be loaded many times, as forks do with their template's: see `once`. Nobody may change it."""
    return _Kept(state)


def _with_parts_kept(value: Plain) -> Plain:
    if isinstance(value, dict):
        return _Kept(value)
    return [_with_parts_kept(item) for item in value] if isinstance(value, list) else value


def once(state: State, read: Callable[..., T], *given: Hashable) -> T:
    """What `read(state, *given)` gives. Of state that is `kept` it is read the first time only, for each `given`, and all have
    that: so it has to be something that nobody changes, and to depend on nothing else. What `read` raises is raised each time."""
    if type(state) is not _Kept:
        return read(state, *given)
    key = read, given
    if key not in state.read:
        state.read[key] = read(state, *given)
    result: T = state.read[key]
    return result


def _name(key: Plain, where: str) -> str:
    if not isinstance(key, str) or key.startswith("$") or key == "sha256":
        raise SnapshotError(f"{where} has a field {key!r}, which no snapshot can have: fields are texts without $")
    return key


class Saved(Protocol):
    """What has state."""

    def save(self) -> State:
        """All that a guest could tell it by. While its guest stands still."""

    def load(self, state: State) -> None:
        """Become what `save` told of. Raises SnapshotError, with nothing changed."""


class Fields:
    """The fields of `state`, which `where` names in errors. Each method raises SnapshotError for what is not as it should be."""

    def __init__(self, state: Plain, where: str) -> None:
        if not isinstance(state, dict):
            raise SnapshotError(f"{where} is {_kind(state)}, not fields by their names")
        self.where = where
        self._state = state
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._state

    def absent(self, name: str) -> bool:
        """Whether it is None, which then counts as read."""
        return self._take(name) is None

    def number(self, name: str, low: int = 0, high: int = 0xFFFFFFFFFFFFFFFF) -> int:
        """A whole number from `low` to `high`."""
        value = self._take(name)
        if type(value) is not int or not low <= value <= high:
            raise self._no_number(value, f"{self.where}.{name}", low, high)
        return value

    def numbers(self, name: str, count: int | None = None, low: int = 0, high: int = 0xFFFFFFFFFFFFFFFF) -> list[int]:
        """Several; `count` of them, if it is given."""
        values = self.list(name, count)
        for i, value in enumerate(values):
            if type(value) is not int or not low <= value <= high:
                raise self._no_number(value, f"{self.where}.{name}[{i}]", low, high)
        return list(values)

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self._take(name)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def text(self, name: str, among: Sequence[str] = ()) -> str:
        """A text; one of `among`, if any are given."""
        value = self._take(name)
        if not isinstance(value, str) or (among and value not in among):
            raise self._wrong(name, value, f"one of {', '.join(among)}" if among else "a text")
        return value

    def data(self, name: str, size: int | None = None, most: int = 1 << 20) -> bytes:
        """Bytes; `size` of them, if it is given, else `most` at most."""
        value = self._take(name)
        if not isinstance(value, bytes):
            raise self._wrong(name, value, "bytes")
        if len(value) != size if size is not None else len(value) > most:
            raise self._wrong(name, value, f"{size} bytes" if size is not None else f"at most {most} bytes")
        return value

    def list(self, name: str, count: int | None = None, most: int = 1 << 16) -> list[Plain]:
        """A list; of `count` entries, if it is given, else of `most` at most."""
        value = self._take(name)
        if not isinstance(value, list):
            raise self._wrong(name, value, "a list")
        if len(value) != count if count is not None else len(value) > most:
            raise self._wrong(name, value, f"{count} entries" if count is not None else f"at most {most} entries")
        return value

    def state(self, name: str) -> State:
        """Of something inside, for its own `load`."""
        value = self._take(name)
        if not isinstance(value, dict):
            raise self._wrong(name, value, "fields by their names")
        return value

    def fields(self, name: str) -> Fields:
        """The same, to be read here."""
        return Fields(self._take(name), f"{self.where}.{name}")

    def several(self, name: str, count: int | None = None) -> Iterator[Fields]:
        """A list of things with fields."""
        for i, value in enumerate(self.list(name, count)):
            yield Fields(value, f"{self.where}.{name}[{i}]")

    def end(self) -> None:
        """All has been read: nothing else may be there, for nobody would heed it."""
        if unknown := sorted(self._state.keys() - self._read):
            raise SnapshotError(f"{self.where} has fields that this version does not know: {ascii(unknown)[1:-1]}")

    def _take(self, name: str) -> Plain:
        if name not in self._state:
            raise SnapshotError(f"{self.where}.{name} is missing")
        self._read.add(name)
        return self._state[name]

    @staticmethod
    def _no_number(value: Plain, where: str, low: int, high: int) -> SnapshotError:
        shown = value if type(value) is int else _kind(value)
        return SnapshotError(f"{where} is {shown}, not a number from {low} to {high}")

    def _wrong(self, name: str, value: Plain, wanted: str) -> SnapshotError:
        return SnapshotError(f"{self.where}.{name} is {_kind(value)}, not {wanted}")


def _kind(value: Plain) -> str:
    if isinstance(value, (bytes, list, dict)):
        return f"{type(value).__name__} of {len(value)}"
    return repr(value) if value is None or isinstance(value, (bool, int)) else f"{str(value)[:40]!r}"
