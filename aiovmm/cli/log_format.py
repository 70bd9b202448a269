"""`--log-format`: a template for the lines of the log, with the reference monitor's words.

`{boottime}` seconds since the start, `{wallclock}` RFC 3339 in UTC, `{glog}` and `{localglog}` MMDD HH:MM:SS.uuuuuu, `{thread}`,
`{level}`, `{levelchar}`, `{location}` file:line, `{msg}`, `{pid}`, `{tid}`, and the parts of a time in UTC, or with `local`
before them in local time: year, month, day, hour, minute, second, micros, offset. `{{` and `}}` are braces.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime

from aiovmm.errors import ConfigError

__all__ = ["DEFAULT", "TemplateFormatter"]

DEFAULT = "aiovmm: {boottime}s: <{thread}> {level}:{location} -- {msg}"
"""The reference's, with our name: what a log file has unless it is told otherwise."""

_START = time.time()
_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|([{}])|([^{}]+)")
_LEVELS = ((logging.ERROR, "ERROR"), (logging.WARNING, "WARN"), (logging.INFO, "INFO"), (0, "DEBUG"))
_GLOG = "%m%d %H:%M:%S.%f"
_FIELDS = {
    "year": "%Y",
    "month": "%m",
    "day": "%d",
    "hour": "%H",
    "minute": "%M",
    "second": "%S",
    "micros": "%f",
    "glog": _GLOG,
}

_Render = Callable[[logging.LogRecord], str]


def _level(record: logging.LogRecord) -> str:
    return next(name for least, name in _LEVELS if record.levelno >= least)


def _time(form: str, *, local: bool) -> _Render:
    def render(record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        return (moment.astimezone() if local else moment).strftime(form)

    return render


def _offset(*, local: bool) -> _Render:
    zone = _time("%z", local=local)
    return lambda record: f"{zone(record)[:3]}:{zone(record)[3:5]}"


_WORDS: dict[str, _Render] = {
    "boottime": lambda record: f"{record.created - _START:12.6f}",
    "wallclock": _time("%Y-%m-%dT%H:%M:%S.%fZ", local=False),
    "thread": lambda record: record.threadName or "anonymous",
    "level": _level,
    "levelchar": lambda record: _level(record)[0],
    "location": lambda record: f"{record.pathname.rpartition('aiovmm/')[2]}:{record.lineno}",
    "msg": logging.LogRecord.getMessage,
    "pid": lambda record: str(record.process),
    "tid": lambda _record: str(_thread_id()),
    "offset": _offset(local=False),
    "localoffset": _offset(local=True),
    **{name: _time(form, local=False) for name, form in _FIELDS.items()},
    **{f"local{name}": _time(form, local=True) for name, form in _FIELDS.items()},
}


def _thread_id() -> int:
    import threading

    return threading.get_native_id()


class TemplateFormatter(logging.Formatter):
    """Lines as `template` says. Raises ConfigError for one that cannot be read."""

    def __init__(self, template: str) -> None:
        super().__init__()
        self._parts = [_part(match) for match in _PART.finditer(template)]

    def format(self, record: logging.LogRecord) -> str:
        """With the traceback behind it, if there is one."""
        line = "".join(part if isinstance(part, str) else part(record) for part in self._parts)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _part(match: re.Match[str]) -> str | _Render:
    word, single, text = match.groups()
    if single:
        raise ConfigError("--log-format", f"has a {single!r} without its other", "a brace itself is {{ or }}")
    if word is None:
        return text or match[0][0]
    if word not in _WORDS:
        raise ConfigError("--log-format", f"{{{word}}} is not known", f"known: {', '.join(sorted(_WORDS))}")
    return _WORDS[word]
