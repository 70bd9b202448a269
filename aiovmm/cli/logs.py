"""Log lines of a session, on standard error or in a file."""

from __future__ import annotations

import logging
import os
import re
import sys
from functools import cached_property
from typing import TextIO

from aiovmm.cli.record_writer import RecordWriter
from aiovmm.errors import printable, shortened

__all__ = ["configure_logging"]

_OURS = re.compile(r"(\x1b\[[0-9;]*m|\n)")
"""In a line of the log: colours, and the ends of a traceback's lines."""
_LONGEST = 24_000
"""Characters of a record with its traceback, which may be spelt by ten each: less than waits for a file's storage."""


class _LazyFormatter(logging.Formatter):
    """structlog's formatter for terminals, imported with the first line that is printed: most runs print none. Tracebacks are
    not painted, for that takes a minute of the event loop where an exception quotes some 100,000 characters."""

    @cached_property
    def _formatter(self) -> logging.Formatter:
        import structlog

        return structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_log_level],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.dev.ConsoleRenderer(
                    colors=sys.stderr.isatty() and "NO_COLOR" not in os.environ,
                    exception_formatter=structlog.dev.plain_traceback,
                ),
            ],
        )

    def format(self, record: logging.LogRecord) -> str:
        return self._formatter.format(record)


class _Lines:
    """A stream as logging knows one: each write is a line, which nobody waits for."""

    def __init__(self, writer: RecordWriter, encoding: str = "utf-8") -> None:
        self._writer = writer
        self._encoding = encoding

    def write(self, text: str) -> None:
        self._writer.write(text.encode(self._encoding, "backslashreplace"))

    def flush(self) -> None:
        """After each line: what waits is written as storage takes it."""

    def finish(self) -> None:
        """All is written, if that can be."""
        self._writer.finish_now()


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """A line that cannot be written is lost: saying so would go the same way. What it quotes commands no terminal, tracebacks
    and messages of others' (asyncio's) included, and has an end; colours are the formatter's."""

    def format(self, record: logging.LogRecord) -> str:
        parts = _OURS.split(shortened(super().format(record), _LONGEST))
        return "".join(part if number % 2 else printable(part) for number, part in enumerate(parts))

    def close(self) -> None:
        """At the end of the process, too."""
        if isinstance(self.stream, _Lines):
            self.stream.finish()
        super().close()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        if not isinstance(sys.exception() if hasattr(sys, "exception") else sys.exc_info()[1], OSError):
            super().handleError(record)


def configure_logging(verbosity: int, file: str | None = None, form: str | None = None) -> None:
    """Warnings, and with each -v more; on standard error or in `file`, which `form` is a template for. Raises ConfigError, and
    HostError for a file that cannot be written."""
    level = [logging.WARNING, logging.INFO, logging.DEBUG][min(verbosity, 2)]
    handler = _Handler(_standard_error() if file is None else _opened(file))
    handler.setFormatter(_LazyFormatter() if file is None and form is None else _template(form))
    for name in ("aiovmm", "asyncio"):  # what failed in a task that nobody waits for is told by that
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.propagate = logger.propagate and file is None
    logging.getLogger("aiovmm").setLevel(level)


def _opened(file: str) -> _Lines:
    from aiovmm.runtime.output_file import open_output_file

    return _Lines(RecordWriter(open_output_file(file, "--log-file", "open the log"), "the log"))


def _standard_error() -> _Lines | TextIO:
    """As it is, where it is nothing of the system's."""
    try:
        return _Lines(RecordWriter(sys.stderr.fileno(), tell=lambda _: None), sys.stderr.encoding)
    except (AttributeError, OSError, ValueError):
        return sys.stderr


def _template(form: str | None) -> logging.Formatter:
    from aiovmm.cli.log_format import DEFAULT, TemplateFormatter

    return TemplateFormatter(DEFAULT if form is None else form)
