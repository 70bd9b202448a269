"""Tracebacks that say where an error was raised and hold nothing of it.

A traceback keeps the frames it names, and those keep their locals: queues, chains, views of guest memory. An event that waits
to be read would keep the memory of guests that have long been reset. So the traceback of an error that is kept is replaced by
one with the same files, lines and names, and with frames that are empty.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from types import CodeType, FrameType, FunctionType, GeneratorType, TracebackType

__all__ = ["let_go"]

_LONGEST = 64  # frames that are kept of a traceback, the innermost: a recursion has a thousand


def let_go(error: BaseException) -> None:
    """Replace the tracebacks of `error`, of what caused it, and of a group's members."""
    for one in _related(error):
        one.__traceback__ = _empty(one.__traceback__)


def _related(error: BaseException) -> Iterator[BaseException]:
    waiting, seen = [error], set[int]()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [other for other in (one.__cause__, one.__context__) if other is not None]
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions


def _empty(trace: TracebackType | None) -> TracebackType | None:
    lines: list[tuple[FrameType, int]] = []
    while trace is not None:
        lines.append((trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    copy: TracebackType | None = None
    for frame, line in reversed(lines[-_LONGEST:]):
        copy = TracebackType(copy, _stand_in(frame.f_code, str(frame.f_globals.get("__name__", ""))), -1, line)
    return copy


def _stand_in(code: CodeType, module: str) -> FrameType:
    """A frame under another's name: that of a generator which never ran, for no frame but such a one has nobody behind it."""
    named = _nothing.__code__.replace(co_filename=code.co_filename, co_name=code.co_name, co_qualname=code.co_qualname)
    generator: GeneratorType[None, None, None] = FunctionType(named, {"__name__": module})()
    frame = generator.gi_frame
    assert frame is not None, "it has not ended"
    return frame


def _nothing() -> Generator[None, None, None]:
    yield
