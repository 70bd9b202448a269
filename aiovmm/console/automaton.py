"""A regular expression as an automaton, which looks at each byte once whatever the expression and whatever the text.

Python's engine backtracks: `(\\w+\\s*)+:` takes time exponential in a line's length, `.*x` time with its square, and holds the
interpreter's lock meanwhile. An automaton cannot say what each group matched, but whether a match has ended, and where the
first begins, which is all that has to be known before the engine is asked.

What no automaton can do (a reference to a group, looking ahead or behind, `^`, `\\b`) is taken for granted: the language is then
larger than the expression's, never smaller, and `exact` is false.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

__all__ = ["Automaton", "Dfa", "automaton_of"]

_MOST_STATES = 1000  # of the nondeterministic automaton; longer counted repeats are taken for endless ones
_MOST_CACHED = 128  # deterministic states that are remembered; then one begins anew
_TURN = 20_000  # units of work, bytes looked up or states gone through, until others have their turn: 2 ms

_parser: Any = re._parser  # type: ignore[attr-defined]
_constants: Any = re._constants  # type: ignore[attr-defined]
_ALL = (1 << 256) - 1


def _mask(values: Iterable[int]) -> int:
    return sum(1 << value for value in set(values))


_DIGIT = _mask(b"0123456789")
_SPACE = _mask(b" \t\n\r\f\v")
_WORD = _mask(b"_0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_CATEGORIES = {
    "CATEGORY_DIGIT": _DIGIT,
    "CATEGORY_NOT_DIGIT": _ALL & ~_DIGIT,
    "CATEGORY_SPACE": _SPACE,
    "CATEGORY_NOT_SPACE": _ALL & ~_SPACE,
    "CATEGORY_WORD": _WORD,
    "CATEGORY_NOT_WORD": _ALL & ~_WORD,
}


class Automaton:
    """The nondeterministic one (Thompson's). State i takes the bytes of `takes[i]` to `to[i]`, or none and goes to all of
    `free[i]`. State 0 is the end. `backwards`: of the language's words read from their ends."""

    def __init__(self, pattern: re.Pattern[bytes], *, backwards: bool) -> None:
        self.exact = not pattern.flags & re.LOCALE
        self.takes, self.to, self.free = [0], [0], [[0][:0]]
        self._backwards = backwards
        self.start = self._sequence(_parser.parse(pattern.pattern, pattern.flags), 0, pattern.flags)

    def reached(self, states: Iterable[int]) -> frozenset[int]:
        """Those and what is free to reach from them, less states that only lead on."""
        waiting, seen = list(states), set(states)
        while waiting:
            for state in self.free[waiting.pop()]:
                if state not in seen:
                    seen.add(state)
                    waiting.append(state)
        return frozenset(state for state in seen if self.takes[state] or state == 0)

    def _state(self, takes: int, to: int, free: list[int]) -> int:
        self.takes.append(takes)
        self.to.append(to)
        self.free.append(free)
        return len(self.takes) - 1

    def _sequence(self, items: Any, to: int, flags: int) -> int:
        """The state in which a sequence begins that ends in `to`."""
        for op, argument in items if self._backwards else reversed(list(items)):
            to = self._item(str(op), argument, to, flags)
        return to

    def _item(self, op: str, argument: Any, to: int, flags: int) -> int:
        match op:
            case "LITERAL" | "NOT_LITERAL" | "ANY" | "IN":
                return self._state(_taken(op, argument, flags), to, [])
            case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
                self.exact &= op != "POSSESSIVE_REPEAT"
                least, most, inner = argument
                return self._repeat(least, most, inner, to, flags)
            case "BRANCH":
                return self._state(0, 0, [self._sequence(branch, to, flags) for branch in argument[1]])
            case "SUBPATTERN":
                _group, added, removed, inner = argument
                return self._sequence(inner, to, flags & ~removed | added)
        self.exact = False
        match op:
            case "ATOMIC_GROUP":
                return self._sequence(argument, to, flags)
            case "GROUPREF_EXISTS":
                _group, yes, no = argument
                return self._state(0, 0, [self._sequence(yes, to, flags), self._sequence(no or [], to, flags)])
            case "GROUPREF":
                anything = self._state(0, 0, [to])
                self.free[anything].append(self._state(_ALL, anything, []))
                return anything
            case _:  # AT, ASSERT, ASSERT_NOT: these take nothing
                return to

    def _repeat(self, least: int, most: int, inner: Any, to: int, flags: int) -> int:
        before = len(self.takes)
        again = self._state(0, 0, [to])
        start = last = self._sequence(
            inner, again, flags
        )  # a copy is made no more often than it is needed: repeats nest
        endless = most is _constants.MAXREPEAT
        if (least if endless else most) * (len(self.takes) - before) + before > _MOST_STATES:
            least, endless, self.exact = min(least, 1), True, False
        if endless:
            self.free[again].append(last)
        if least == 0 and (endless or most == 0):
            return again
        if not endless and most > least:
            start = self._state(0, 0, [start, to])
            for _ in range(most - least - 1):
                start = self._state(0, 0, [self._sequence(inner, start, flags), to])
            least += 1  # the last is one of those that may be
        for _ in range(least - 1):
            start = self._sequence(inner, start, flags)
        return start


def _taken(op: str, argument: Any, flags: int) -> int:
    if op == "ANY":
        return _ALL if flags & re.DOTALL else _ALL & ~(1 << 10)
    if op != "IN":
        mask = _either_case(1 << argument, flags)
        return mask if op == "LITERAL" else _ALL & ~mask
    mask, negated = 0, False
    for kind, value in argument:
        match str(kind):
            case "NEGATE":
                negated = True
            case "LITERAL":
                mask |= 1 << value
            case "RANGE":
                mask |= (1 << value[1] + 1) - (1 << value[0])
            case _:
                mask |= _CATEGORIES[str(value)]
    mask = _either_case(mask, flags)
    return _ALL & ~mask if negated else mask


def _either_case(mask: int, flags: int) -> int:
    if not flags & re.IGNORECASE:
        return mask
    letters = _mask(range(65, 91))
    return mask | (mask & letters) << 32 | (mask >> 32) & letters


class _State:
    """A set of states in which the automaton may be. `after[byte]` is the next, once it has been asked for."""

    def __init__(self, inner: frozenset[int]) -> None:
        self.inner = inner
        self.ends = 0 in inner
        self.after: list[_State | None] = [None] * 256


class Dfa:
    """The deterministic automaton, made as it is needed, of words that may begin anywhere. `work` counts what it costs."""

    def __init__(self, automaton: Automaton) -> None:
        self._automaton = automaton
        self._begin = automaton.reached([automaton.start])
        self._known: dict[frozenset[int], _State] = {}
        self.work = 0

    def first(self) -> _State:
        """The state before any byte."""
        return self._state(self._begin)

    def scan(self, state: _State, data: bytes) -> Iterator[tuple[int, _State] | None]:
        """(i, state) for each i such that a word ends behind byte i - 1 of `data`, and at last (-1, state) for the state behind
        all; None whenever others ought to have their turn."""
        self.work += len(data)
        for i, byte in enumerate(data, 1):
            following = state.after[byte]
            if following is None:
                following = self._step(state, byte)
                if self.work > _TURN:
                    self.work = 0
                    yield None
            state = following
            if state.ends:
                yield i, state
        yield -1, state

    def _state(self, inner: frozenset[int]) -> _State:
        state = self._known.get(inner)
        if state is None:
            if len(self._known) >= _MOST_CACHED:
                self._known.clear()
            state = self._known[inner] = _State(inner)
        return state

    def _step(self, state: _State, byte: int) -> _State:
        a = self._automaton
        bit = 1 << byte
        inner = a.reached({a.to[s] for s in state.inner if a.takes[s] & bit}) | self._begin
        self.work += 20 + len(state.inner) + len(inner)
        following = state.after[byte] = self._state(inner)
        return following


@lru_cache(maxsize=64)
def automaton_of(pattern: re.Pattern[bytes]) -> tuple[Dfa, Dfa, bool]:
    """Of the ends of matches, of their beginnings (read backwards), and whether they say all that there is to know."""
    forwards, backwards = Automaton(pattern, backwards=False), Automaton(pattern, backwards=True)
    return Dfa(forwards), Dfa(backwards), forwards.exact and backwards.exact
