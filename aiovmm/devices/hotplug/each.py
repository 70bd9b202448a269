"""What one write of a guest's asks for of several slots or units: each is done, whatever becomes of the others. Pure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from aiovmm.runtime.undoing import raise_last

__all__ = ["Handler", "each"]

Handler = Callable[[], Awaitable[None] | None]


def each(handlers: Iterable[Handler]) -> Awaitable[None] | None:
    """Call all of them; the result is done when what they give is, and None if that is nothing. Raises what was raised
    last, here or there, in the context of what was before."""
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
    raise_last(errors)
    return None


async def _all(pending: list[Awaitable[None]], errors: list[Exception]) -> None:
    for wait in pending:
        try:
            await wait
        except Exception as exc:
            errors.append(exc)
    raise_last(errors)
