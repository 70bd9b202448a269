"""Guests of this user that run, whichever process they are of: a folder for each, for `aiovmm ps` and `logs`.

    NAME-ID/lock         its process has a lock on it for as long as it lives, however it ends
    NAME-ID/about.json   what it is, and how far it has come
    NAME-ID/defaults.json  what commands in it have that are not told otherwise
    NAME-ID/vsock        the unix socket that `aiovmm exec` takes
    NAME-ID/console      what its console has printed last; console.old what it printed before

A folder that nobody has locked is left over, and swept away by whoever looks next; but not while one is made, which has no lock
yet: whoever makes one, and who sweeps, has a lock on the folder of all.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from aiovmm.console import Console, ConsoleReader
from aiovmm.errors import HostError, UsageError
from aiovmm.runtime.flock import flocked
from aiovmm.runtime.user_dirs import runtime_directory
from aiovmm.runtime.worker import Worker

__all__ = ["BOOTING", "PREPARING", "RUNNING", "Defaults", "Entry", "Listed", "defaults_at", "find_listed", "listed"]

PREPARING, BOOTING, RUNNING = "preparing", "booting", "running"
"""States: its image is made or fetched; its kernel boots; its agent is ready."""

_ELSEWHERE = "XDG_RUNTIME_DIR says where else it may be"
_PART = 64 << 10  # bytes that are written at once
_LARGEST = 1 << 20  # bytes of a console's file, of which there are two: the folder may be in memory
_LONGEST = 64 << 20  # bytes of a document: a command line may have 6 MiB, and six characters for each of them
_NO_LOCK = (errno.ENOENT, errno.ENOTDIR, errno.ENXIO, errno.ELOOP, errno.EACCES)
_MOST = 1 << 63  # of bytes, or seconds


@dataclass(frozen=True)
class Entry:
    """A guest. `started` is when it was asked for, in seconds since the epoch, `memory` in bytes, 0 if that is not known yet;
    `ports` are pairs: of the host's loopback, and the guest's."""

    id: str
    name: str
    pid: int
    started: float
    root: str
    command: str
    memory: int
    folder: str
    state: str = RUNNING
    ports: Sequence[Sequence[int]] = ()

    @property
    def socket(self) -> Path:
        """What `aiovmm exec` takes."""
        return Path(self.folder) / "vsock"

    @property
    def console(self) -> Path:
        """The file that its console's output goes to."""
        return Path(self.folder) / "console"

    @property
    def lives(self) -> bool:
        """Whether its process does, which may have been killed and have left all of this."""
        try:
            return not _is_unlocked(Path(self.folder))
        except OSError:
            return False


@dataclass(frozen=True)
class Defaults:
    """What a command has that is not told otherwise: variables, a user and a directory, None for the agent's."""

    env: dict[str, str] = field(default_factory=dict)
    user: str | None = None
    cwd: str | None = None

    def but(self, env: dict[str, str], user: str | None, cwd: str | None) -> Defaults:
        """For one that is told so much."""
        return Defaults({**self.env, **env}, user or self.user, cwd or self.cwd)


class Listed:
    """A guest of this process that is listed until this is closed. Raises HostError, UsageError."""

    def __init__(self, name: str, root: str, command: str) -> None:
        self._about = name, root, command
        self._started = time.time()
        self.id = secrets.token_hex(4)
        try:
            parent = _parent()
            self.folder = parent / f"{name.replace('/', '-')[:40]}-{self.id}"
            with flocked(parent, fcntl.LOCK_SH):
                self.folder.mkdir(mode=0o700)
                self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
        except OSError as exc:
            raise HostError("list a guest", exc.errno or 0, _ELSEWHERE) from exc

    @property
    def console(self) -> Path:
        """Where its console's output goes."""
        return self.folder / "console"

    def tell(self, state: str, memory: int = 0, ports: Mapping[int, int] | None = None) -> None:
        """How far it has come: it is listed from the first time on. Raises HostError."""
        pairs = tuple((ports or {}).items())
        name, root, command = self._about
        entry = Entry(self.id, name, os.getpid(), self._started, root, command, memory, str(self.folder), state, pairs)
        self._write("about.json", asdict(entry))

    def default(self, defaults: Defaults) -> None:
        """What its commands have from now on. Raises HostError."""
        self._write("defaults.json", asdict(defaults))

    def _write(self, name: str, content: object) -> None:
        """Whole, or not at all."""
        scratch = self.folder / f".{name}"
        try:
            scratch.write_text(json.dumps(content))
            os.replace(scratch, self.folder / name)
        except OSError as exc:
            raise HostError("list a guest", exc.errno or 0, _ELSEWHERE, str(self.folder)) from exc

    async def keep(self, console: Console, writes: Worker) -> None:
        """Write down what the console prints, until it ends. In a thread: the folder may be where storage stands still; and in
        that by which this is closed, or what is being made there would be left."""
        reader = console.reader()
        try:
            with suppress(OSError):  # no room: the guest need not hear of it
                while await self._fill(reader, writes):
                    await writes.submit(partial(os.replace, self.console, self.folder / "console.old"))
        finally:
            reader.close()

    async def _fill(self, reader: ConsoleReader, writes: Worker) -> bool:
        """One file; whether it is full."""
        out = await writes.submit(partial(self.console.open, "wb", buffering=0))
        size = 0
        try:
            while size < _LARGEST and (data := await reader.read(min(_PART, _LARGEST - size))):
                size += await writes.submit(partial(out.write, data))
            return size >= _LARGEST
        finally:
            writes.submit(out.close)  # when what is written has been

    def close(self) -> None:
        """Idempotent."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            os.close(lock)


def listed() -> list[Entry]:
    """All of this user's, the oldest first. Raises UsageError, HostError."""
    try:
        parent = runtime_directory(make=False) / "guests"
        return sorted(_entries(parent), key=lambda entry: entry.started) if parent.is_dir() else []
    except OSError as exc:
        raise HostError("list guests", exc.errno or 0, path=exc.filename) from exc


def find_listed(what: str) -> Entry:
    """The one with that name, or whose id begins so. Raises UsageError."""
    found = [entry for entry in listed() if entry.name == what or entry.id.startswith(what)]
    if len(found) != 1:
        reason = f"{len(found)} guests are" if found else "no guest that runs is"
        raise UsageError(f"{reason} named {what!r}: `aiovmm ps` shows names and ids")
    return found[0]


def defaults_at(socket: Path) -> Defaults:
    """Of the guest with that socket, if it is one of this user's that are listed."""
    try:
        folder = Path(os.path.realpath(socket)).parent
        if folder.parent == Path(os.path.realpath(runtime_directory(make=False) / "guests")):
            defaults = Defaults(**_document(folder / "defaults.json"))
            _check(str, *defaults.env, *defaults.env.values(), defaults.user or "", defaults.cwd or "")
            return defaults
    except (OSError, ValueError, TypeError, AttributeError, UsageError):  # it has ended, or none could be listed
        pass
    return Defaults()


def _parent() -> Path:
    path = runtime_directory() / "guests"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def _entries(parent: Path) -> list[Entry]:
    found = []
    with flocked(parent, fcntl.LOCK_EX | fcntl.LOCK_NB) as may_sweep:
        for folder in parent.iterdir():
            if _is_left_over(folder):
                if may_sweep:
                    shutil.rmtree(folder, ignore_errors=True)
                continue
            with suppress(OSError, ValueError, TypeError):  # it has just begun, or just ended
                found.append(_sound(replace(Entry(**_document(folder / "about.json")), folder=str(folder))))
    return found


def _document(path: Path) -> Any:
    """What a guest's monitor wrote, or who has taken it over: whatever that is, other guests are listed. Raises OSError,
    ValueError."""
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW), "rb") as file:
        text = file.read(_LONGEST + 1) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""
    if not text or len(text) > _LONGEST:
        raise ValueError("no document")
    try:
        return json.loads(text)
    except RecursionError as exc:
        raise ValueError("no document") from exc


def _sound(entry: Entry) -> Entry:
    """It, if it is of what it says that it is of. Raises TypeError, ValueError."""
    numbers = [entry.pid, entry.memory]
    for host, guest in entry.ports:
        numbers += [host, guest]
    _check(int, *numbers)
    _check(str, entry.id, entry.name, entry.root, entry.command, entry.state)
    if not all(0 <= number < _MOST for number in (*numbers, entry.started)):
        raise ValueError("no entry")
    return entry


def _check(kind: type, *values: object) -> None:
    if not all(isinstance(value, kind) for value in values):
        raise TypeError(f"not {kind}")


def _is_unlocked(folder: Path) -> bool:
    """Raises OSError if there is no lock."""
    how = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
    with flocked(folder / "lock", fcntl.LOCK_SH | fcntl.LOCK_NB, how) as is_locked:
        return is_locked  # as by any others that look just now


def _is_left_over(folder: Path) -> bool:
    """Or just begun, where that may be, or has something else in its lock's place. Raises OSError: who cannot look, for want of
    descriptors, has not seen that."""
    try:
        return _is_unlocked(folder)
    except OSError as exc:
        if exc.errno not in _NO_LOCK:
            raise
        return True
