"""Events and log records that say by themselves what happened, and are bounded in number however fast a guest makes errors."""

from __future__ import annotations

import errno
import gc
import logging
import traceback
import weakref
from collections.abc import Callable
from functools import partial

import pytest

from aiovmm.errors import AiovmmError, HostError
from aiovmm.events import Subscription
from aiovmm.lifecycle import Event, EventKind, ExitReason, ExitStatus
from aiovmm.machine.journal import Journal
from aiovmm.runtime.traces import let_go


class Big:
    """Stands for guest memory."""


def failed(work: Callable[[], object]) -> Exception:
    try:
        work()
    except Exception as exc:
        return exc
    raise AssertionError("it did not fail")


async def read(events: Subscription[Event]) -> list[Event]:
    return [event async for event in events]


def serve_the_queue(held: Big) -> None:
    try:
        raise KeyError("cause")
    except KeyError as exc:
        raise ValueError("bad request") from exc


async def test_an_error_that_says_as_much_as_it_likes_is_told_in_a_line_of_a_bounded_length() -> None:
    journal = Journal("web1")
    events = journal.subscribe(from_start=True)
    journal.device_error("disk0", ValueError("x" * 10_000))
    journal.end(ExitStatus(ExitReason.KILLED))
    event = (await read(events))[0]
    assert event.detail.startswith("ValueError: xxx")
    assert len(event.detail) < 2100


async def test_an_event_has_the_error_with_a_traceback_that_holds_nothing() -> None:
    journal = Journal("web1")
    events = journal.subscribe(from_start=True)
    big = Big()
    gone = weakref.ref(big)
    journal.device_error("disk0", failed(partial(serve_the_queue, big)))
    journal.end(ExitStatus(ExitReason.KILLED))
    del big
    gc.collect()
    assert gone() is None, "an event that waits keeps no guest's memory"
    event = (await read(events))[0]
    assert (event.kind, event.vm, event.device) == (EventKind.DEVICE_ERROR, "web1", "disk0")
    assert event.detail == "ValueError: bad request"
    assert isinstance(event.error, ValueError)
    text = "".join(traceback.format_exception(event.error))
    assert "in serve_the_queue" in text
    assert 'raise ValueError("bad request") from exc' in text
    assert "raise KeyError" in text, "the cause's as well"
    assert "^" not in text


def test_tracebacks_of_groups_and_of_errors_that_refer_to_each_other_are_let_go() -> None:
    held = Big()
    gone = weakref.ref(held)
    one = failed(partial(serve_the_queue, held))
    one.__context__ = other = ExceptionGroup("both", [failed(partial(serve_the_queue, held)), ValueError()])
    other.__cause__ = one
    let_go(other)
    del held
    gc.collect()
    assert gone() is None
    assert len(traceback.extract_tb(one.__traceback__)) == 2


async def test_an_error_of_the_host_is_told_with_its_errno() -> None:
    journal = Journal("web1")
    events = journal.subscribe(from_start=True)
    journal.device_error("disk0", HostError("writing the disk image", errno.ENOSPC, "", "/srv/web1.img"))
    journal.end(ExitStatus(ExitReason.KILLED))
    event = (await read(events))[0]
    assert "writing the disk image: No space left on device (free some space there" in event.detail
    assert event.detail.endswith(": /srv/web1.img")
    assert isinstance(event.error, OSError)
    assert event.error.errno == errno.ENOSPC


def test_a_record_says_by_itself_whose_error_it_is(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "aiovmm"):
        journal = Journal("web1")
        journal.emit(EventKind.PANICKED, "no init: 100% gone")
        journal.device_error("disk0", OSError(errno.EIO, "Input/output error"))
        journal.device_error("custom0", failed(partial(serve_the_queue, Big())))
    messages = [record.getMessage() for record in caplog.records]
    assert "web1: panicked: detail='no init: 100% gone'" in messages
    assert "web1: disk0: device failed: error='[Errno 5] Input/output error' kind=OSError" in messages
    assert "web1: custom0: device failed: error='ValueError: bad request' kind=ValueError" in messages
    assert caplog.records[1].vm == "web1"  # type: ignore[attr-defined]
    assert caplog.records[1].device == "disk0"  # type: ignore[attr-defined]
    assert [bool(record.exc_info) for record in caplog.records if record.levelno == logging.WARNING] == [False, True]
    assert caplog.text.count("raise ValueError") == 1, "a bug has its traceback, a full disk has none"


def test_no_word_of_a_guest_commands_a_terminal(caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal("vm")
    journal.remark("a\x1b]52;c;cm0gLXJm\x07\nb\u202e\x9b6n")
    journal.device_error("disk0", AiovmmError("x\x1b[6n"))
    journal.device_error("disk0", ValueError("y\x1b[6n"))
    assert [event.detail for event in journal._stream.history] == ["x\\x1b[6n", "ValueError: y\\x1b[6n"]
    assert len(caplog.records) == 3
    assert all(record.getMessage().isprintable() for record in caplog.records)
    assert "\\x1b]52;c;cm0gLXJm\\x07\\nb\\u202e\\x9b6n" in caplog.text
