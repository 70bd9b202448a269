"""What is done to its end whatever fails in it: steps that take something apart, and how several errors are told. Pure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableSequence
from itertools import pairwise
from typing import TypeVar

__all__ = ["Undoing", "raise_last"]

E = TypeVar("E", bound=BaseException)


def raise_last(errors: MutableSequence[E]) -> None:
    """Raise the last of `errors`, each in the context of the one before it, as Python does where one is raised while another is
    handled; nothing for none. The list is empty then: a traceback knows the frame that has it, and what that was for."""
    try:
        for before, error in pairwise(errors):
            if error.__context__ is None and error is not before:
                error.__context__ = before
        if errors:
            raise errors[-1]
    finally:
        errors.clear()


class Undoing:
    """What is to be done when something is taken apart, the last that was pushed first. For many that live at the same time: an
    exit stack has ten objects for each, all of which the garbage collector looks through."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], Awaitable[object] | None]] = []

    def push(self, step: Callable[[], Awaitable[object] | None]) -> None:
        """What it gives, if that is no None, is awaited."""
        self._steps.append(step)

    async def aclose(self) -> None:
        """Do all of it, once, also if some of it fails; then see `raise_last`."""
        errors: list[BaseException] = []
        while self._steps:
            try:
                if (pending := self._steps.pop()()) is not None:
                    await pending
            except BaseException as exc:
                errors.append(exc)
        raise_last(errors)

    def close(self) -> None:
        """The same, of steps that give nothing to be awaited."""
        errors: list[BaseException] = []
        while self._steps:
            try:
                pending = self._steps.pop()()
                assert pending is None, "it would be forgotten"
            except BaseException as exc:
                errors.append(exc)
        raise_last(errors)
