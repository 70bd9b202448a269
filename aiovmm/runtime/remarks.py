"""Remarks on what somebody has written: it is taken, and does less than it seems to. Who reads command lines has them before its
log is set up, and hears them itself; elsewhere they are warnings of the library's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aiovmm.errors import readable

__all__ = ["heard_by", "remark"]

_hearers: list[Callable[[str], object]] = []


def remark(text: str) -> None:
    """To whoever listens, as one line that can be printed, whatever it quotes."""
    if _hearers:
        _hearers[-1](readable(text))
        return
    import logging  # for who has something to remark

    logging.getLogger("aiovmm").warning("%s", readable(text))


@contextmanager
def heard_by(hear: Callable[[str], object]) -> Iterator[None]:
    """Within it, remarks go there."""
    _hearers.append(hear)
    try:
        yield
    finally:
        _hearers.pop()
