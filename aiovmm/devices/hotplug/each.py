"""What one write of a guest's asks for of several slots or units: each is done, whatever becomes of the others. Pure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from itertools import pairwise

__all__ = ["Handler", "each"]

Handler = Callable[[], Awaitable[None] | None]


def each(handlers: Iterable[Handler]) -> Awaitable[None] | None:
    """Call all of them; the result is done when what they give is, and None if that is nothing. Raises what was raised first,
    here or there, and what was raised later is in its context."""
    pending: list[Awaitable[None]] = []
    errors: list[Exception] = []
    for handler in handlers:
        try:
            if (wait := handler()) is not None:
                pending.append(wait)
        except Exception as exc:
            errors.append(exc)
    if pending:
        return _all(pending, errors)
    _tell(errors)
    return None


async def _all(pending: list[Awaitable[None]], errors: list[Exception]) -> None:
    for wait in pending:
        try:
            await wait
        except Exception as exc:
            errors.append(exc)
    _tell(errors)


def _tell(errors: list[Exception]) -> None:
    try:
        for error, later in pairwise(errors):
            if error.__context__ is None and error is not later:
                error.__context__ = later
        if errors:
            raise errors[0]
    finally:  # whose traceback knows this frame
        errors.clear()
