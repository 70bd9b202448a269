"""What a guest, a file or a peer has written commands no terminal by way of an error, a line of the log, or what is listed."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from aiovmm import errors
from aiovmm.agent import errors as agent_errors
from aiovmm.cli.commands import cli
from aiovmm.cli.logs import configure_logging
from aiovmm.cli.record_writer import ROOM
from aiovmm.errors import AiovmmError, ConfigError, ExpectTimeout, HostError, StateError, printable
from aiovmm.pool.workers.plain import WorkerLost
from aiovmm.runtime.log import Log
from aiovmm.sandboxes.listed import RUNNING, Listed
from tests.limits import HANGS

EVIL = "\x1b]52;c;cm0gLXJmIC8K\x07\x1b[6n\r\n\x9b5i\u202ex"
TAMED = "\\x1b]52;c;cm0gLXJmIC8K\\x07\\x1b[6n\\r\\n\\x9b5i\\u202ex"


def test_what_can_be_printed_stays_as_it_is_and_the_rest_is_spelt() -> None:
    assert printable("as 'it' is: Grüße, 世界 \\x1b") == "as 'it' is: Grüße, 世界 \\x1b"
    assert printable(EVIL) == TAMED
    assert printable(printable(EVIL)) == TAMED


def made(kind: type[Any]) -> Any:
    """One whose texts are all a guest's."""
    of_kinds = {"bytes": EVIL.encode(), "int": 2, "int | None": 2, "float": 1.0, "Sequence[str | bytes]": [EVIL]}
    if kind.__init__ in (Exception.__init__, BaseException.__init__, ValueError.__init__):
        return kind(EVIL)
    given = {
        p.name: of_kinds.get(str(p.annotation), EVIL)
        for p in inspect.signature(kind.__init__).parameters.values()
        if p.name != "self" and "ExitStatus" not in str(p.annotation)
    }
    return kind(**given)


def kinds() -> Iterator[type[AiovmmError]]:
    waiting: list[type[AiovmmError]] = [AiovmmError]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.__module__ in (errors.__name__, agent_errors.__name__, WorkerLost.__module__):
            yield kind


@pytest.mark.parametrize("kind", sorted(set(kinds()), key=str))
def test_the_text_of_every_error_is_one_line_that_can_be_printed(kind: type[AiovmmError]) -> None:
    text = str(made(kind))
    assert text.isprintable()
    assert "52;c;" in text


@pytest.mark.parametrize("kind", sorted(set(kinds()), key=str))
def test_the_text_of_every_error_has_an_end_whatever_it_quotes(
    kind: type[AiovmmError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value of a snapshot's, a document's or a peer's is as long as it likes."""
    monkeypatch.setitem(made.__globals__, "EVIL", EVIL * 100_000)
    text = str(made(kind))
    assert text.isprintable()
    assert len(text) <= 20_000


def test_an_error_that_quotes_too_much_says_how_much_it_was_and_what_to_do_all_the_same() -> None:
    error = ConfigError("memory.size", f"{'9' * 1_000_000} is more than any machine has", "like 2G")
    text = str(error)
    assert len(text) <= 2000
    assert text.startswith("memory.size: 999")
    assert "[... of 1000052 characters ...]" in text
    assert text.endswith("999 is more than any machine has (like 2G)")
    assert str(StateError(text)) == text
    assert len(error.reason) > 1_000_000


def test_what_a_guest_printed_last_is_quoted_whole() -> None:
    said = b"".join(b"line %d\r\n" % number for number in range(1000))
    assert repr(said[-2000:]) in str(ExpectTimeout(b"login", 1.0, said))


@pytest.fixture
def loggers() -> Iterator[None]:
    """As they were, afterwards."""
    loggers = [logging.getLogger(name) for name in ("aiovmm", "asyncio")]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    yield
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.level, logger.propagate, logger.handlers = level, propagate, handlers


@pytest.mark.usefixtures("loggers")
@pytest.mark.parametrize("form", [None, "{level} {msg}"])
async def test_a_line_of_the_log_and_the_traceback_of_what_nobody_awaited(
    capsys: pytest.CaptureFixture[str], form: str | None
) -> None:
    configure_logging(0, None, form)
    logging.getLogger("aiovmm").warning(EVIL)
    context = {"message": EVIL, "exception": ValueError(EVIL)}
    asyncio.get_running_loop().call_exception_handler(context)
    text = capsys.readouterr().err
    assert text.count("52;c;cm0gLXJmIC8K") >= 3
    assert all(line.isprintable() for line in text.split("\n"))
    assert "Traceback" in text or "ValueError" in text


@pytest.mark.usefixtures("loggers")
@pytest.mark.parametrize("form", [None, "{level} {msg}"])
async def test_a_line_of_the_log_and_a_traceback_have_an_end_whatever_they_quote(
    capsys: pytest.CaptureFixture[str], form: str | None
) -> None:
    """A fault of ours may quote a message as long as a guest, a peer or a file likes: painted, it took the loop for minutes."""
    configure_logging(0, None, form)
    much = EVIL * 50_000
    Log(vm="web1").warning("device failed", device="disk0", error=much, exc_info=fault(much))
    asyncio.get_running_loop().call_exception_handler({"message": much, "exception": fault(much)})
    text = capsys.readouterr().err
    assert len(text) <= 2 * ROOM
    assert all(line.isprintable() for line in text.split("\n"))
    assert text.count("characters ...]") >= 2
    assert "web1: disk0: device failed" in text


def test_the_text_of_a_record_has_an_end_for_who_prints_it_himself(caplog: pytest.LogCaptureFixture) -> None:
    Log(vm="web1").warning("device failed", device="disk0", error=EVIL * 50_000, kind="ValueError")
    [text] = caplog.messages
    assert len(text) <= 20_000
    assert text.isprintable()
    assert text.startswith("web1: disk0: device failed: error=")
    assert text.endswith("kind=ValueError")


def fault(text: str) -> ValueError:
    """As it comes from where it was raised."""
    try:
        raise ValueError(text)
    except ValueError as exc:
        return exc


def test_what_is_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    entry = Listed("box", EVIL, EVIL)
    entry.tell(RUNNING, 256 << 20)
    shown = CliRunner().invoke(cli, ["ps"]).output
    entry.close()
    assert "52;c;" in shown
    assert all(line.isprintable() for line in shown.split("\n"))


def test_a_terminal_is_shown_what_a_guests_log_draws_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    entry = Listed("box", "/root", "make")
    entry.tell(RUNNING, 256 << 20)
    entry.console.write_bytes(b"\x1b[31mred\x1b[m" + EVIL.encode() + b"\n")
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "aiovmm", "logs", "box"]
    process = subprocess.Popen(command, stdout=slave)
    assert process.wait(HANGS) == 0
    os.close(slave)
    shown = os.read(master, 4096)
    os.close(master)
    entry.close()
    assert shown.startswith(b"\x1b[31mred\x1b[m")
    assert b"\x1b]52" not in shown
    assert b"\x1b[6n" not in shown


def test_a_host_error_has_its_file_as_it_is() -> None:
    error = HostError("open", 2, path=EVIL)
    assert error.filename == EVIL
    assert TAMED in str(error)
