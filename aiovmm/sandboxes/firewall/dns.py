"""Questions to a name server and its answers, as far as a filter has to know them. Pure. Sources: RFC 1035, 2181, 6891.

Both come from who is not trusted: the guest asks, and the answers are those of whoever has the name. What is not exactly one
question, plainly written, is none; in an answer only what follows from the question counts.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Question", "addresses", "failure", "question", "refusal"]

_HEADER = struct.Struct(">HHHHHH")
_IN, _A, _CNAME, _AAAA = 1, 1, 5, 28
_LONGEST = 255  # bytes of a name
_RECORDS = 256
_ALIASES = 16  # one after the other
_STEPS = 4096  # labels and pointers of an answer's names together: they may lead to each other without end
_FAILED, _REFUSED = 2, 5


class Question(NamedTuple):
    """`id` is the sender's; `name` is in lower case, without a dot at its end; `raw` is the question as it was written, whose
    letters may be of either case."""

    id: int
    name: bytes
    raw: bytes


def question(data: bytes) -> Question | None:
    """That of a plain query, and nothing else."""
    if len(data) < _HEADER.size:
        return None
    number, flags, questions, answers, authorities, more = _HEADER.unpack_from(data)
    if flags & 0xF800 or (questions, answers, authorities) != (1, 0, 0) or more > 1:
        return None
    return _asked(data, number)


def _asked(data: bytes, number: int) -> Question | None:
    """Its name is written without pointers: there is nothing before it."""
    labels, at = [], _HEADER.size
    while at < len(data) and data[at]:
        size = data[at]
        if size > 63 or at + size - _HEADER.size >= _LONGEST:
            return None
        labels.append(data[at + 1 : at + 1 + size])
        at += 1 + size
    end = at + 5
    if end > len(data) or int.from_bytes(data[at + 3 : end], "big") != _IN or any(b"." in label for label in labels):
        return None
    return Question(number, b".".join(labels).lower(), data[_HEADER.size : end])


def refusal(asked: Question) -> bytes:
    """The answer to a question that may not be asked."""
    return _HEADER.pack(asked.id, 0x8180 | _REFUSED, 1, 0, 0, 0) + asked.raw


def failure(asked: Question) -> bytes:
    """The answer to one that nobody answers."""
    return _HEADER.pack(asked.id, 0x8180 | _FAILED, 1, 0, 0, 0) + asked.raw


def addresses(data: bytes, asked: Question) -> list[tuple[bytes, int]]:
    """Those that an answer has for what was asked, through aliases, with the seconds that each may be kept. None of one to
    something else, or that is damaged."""
    if len(data) < _HEADER.size:
        return []
    number, flags, questions, count, _, _ = _HEADER.unpack_from(data)
    end = _HEADER.size + len(asked.raw)
    if (
        number != asked.id
        or flags & 0xF80F != 0x8000
        or questions != 1
        or data[_HEADER.size : end].lower() != asked.raw.lower()
    ):
        return []
    try:
        records = list(_records(data, end, min(count, _RECORDS)))
    except (IndexError, ValueError, struct.error):
        return []
    return list(_followed(records, asked.name))


class _Record(NamedTuple):
    owner: bytes
    kind: int
    seconds: int
    data: bytes


def _followed(records: list[_Record], name: bytes) -> Iterator[tuple[bytes, int]]:
    names = {name}
    for _ in range(_ALIASES):  # they may come in any order
        before = len(names)
        names |= {record.data for record in records if record.kind == _CNAME and record.owner in names}
        if len(names) == before:
            break
    for record in records:
        if record.owner in names and len(record.data) == {_A: 4, _AAAA: 16}.get(record.kind):
            yield record.data, record.seconds


def _records(data: bytes, at: int, count: int) -> Iterator[_Record]:
    steps = iter(range(_STEPS))
    for _ in range(count):
        owner, at = _name(data, at, steps)
        kind, group, seconds, size = struct.unpack_from(">HHIH", data, at)
        at += 10
        if at + size > len(data):
            raise ValueError("a record goes on behind the end")
        if group == _IN:
            content = _name(data, at, steps)[0] if kind == _CNAME else data[at : at + size]
            yield _Record(owner, kind, seconds if seconds < 1 << 31 else 0, content)
        at += size


def _name(data: bytes, at: int, steps: Iterator[int]) -> tuple[bytes, int]:
    """A name, and what is behind it. Pointers lead to what comes before: so it ends; `steps` are what is left to find it with.
    Raises IndexError, ValueError."""
    labels: list[bytes] = []
    behind, size = -1, 0
    while length := data[at]:
        if next(steps, None) is None:
            raise ValueError("names are too long together")
        if length >= 0xC0:
            target = (length & 0x3F) << 8 | data[at + 1]
            behind = at + 2 if behind < 0 else behind
            if target >= at:
                raise ValueError("a pointer leads forward")
            at = target
            continue
        size += 1 + length
        if length > 63 or size > _LONGEST or at + 1 + length > len(data):
            raise ValueError("a name is too long")
        labels.append(data[at + 1 : at + 1 + length])
        at += 1 + length
    return b".".join(labels).lower(), at + 1 if behind < 0 else behind
