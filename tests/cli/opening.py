"""`python -m tests.cli.opening PATIENCE < LINES`: each line, a JSON list of arguments, is a process that is `aiovmm` with these.
Of each comes a JSON object on standard output (`Outcome`). All modules are imported before, and who forks has one thread, so a
line takes little more than its guest does. Each has a directory of its own, in which there is one of everything that a path may
name (`furnish`), and what it leaves behind is counted: processes, sockets, network interfaces.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import gc
import importlib
import json
import os
import pkgutil
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import aiovmm
from aiovmm.cli import main
from aiovmm.native import lib
from aiovmm.vhost_user import frontend

__all__ = ["ABSENT_FD", "WAITS", "Outcome", "furnish"]

ABSENT_FD = 987
"""A descriptor that no line has."""
WAITS = "waits for its back end"
"""Of what is then said; who hears that ends it by a signal."""
_MOST = 1 << 16
_PR_SET_CHILD_SUBREAPER = 36
_GRACE = 5.0  # seconds that what a line has started may take to end after it


@dataclass(frozen=True)
class Outcome:
    """`code`: exit code, or None for one that hung (then `said` ends with where); `left`: what was still there afterwards."""

    code: int | None
    said: str
    seconds: float
    left: list[str]


def furnish(place: Path) -> None:
    """One of everything."""
    (place / "directory").mkdir()
    os.mkfifo(place / "fifo")
    (place / "loop").symlink_to("loop")
    (place / "dangling").symlink_to("nowhere/at/all")
    (place / "empty").touch()
    (place / "text").write_bytes(b"no image\n" * 57)
    for name, size in (("image", 2 << 20), ("huge", 1 << 43)):
        with (place / name).open("wb") as file, contextlib.suppress(OSError):
            file.truncate(size)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(place / "dead"))


def _interfaces() -> set[str]:
    return set(os.listdir("/sys/class/net"))


def _sockets(place: Path) -> set[str]:
    return {str(path) for path in place.rglob("*") if stat.S_ISSOCK(path.lstat().st_mode)}


def _become(place: Path, arguments: Sequence[str], said: int) -> None:
    """Have what a process of its own would have."""
    os.setpgid(0, 0)
    os.chdir(place)
    os.environ |= {"HOME": str(place), "XDG_CACHE_HOME": str(place / "cache"), "NO_COLOR": "1"}
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd, number in ((nowhere, 0), (nowhere, 1), (said, 2)):
        os.dup2(fd, number)
    os.closerange(3, ABSENT_FD + 1)
    faulthandler.enable(os.fdopen(os.dup(2), "w"))
    faulthandler.register(signal.SIGUSR1, os.fdopen(os.dup(2), "w"))
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115 (to the end)
    sys.argv = ["aiovmm", *arguments]


def _wait(pid: int, deadline: float, said: int) -> int | None:
    """Its exit code, or None: it had to be killed. Who says that he waits for somebody is told to stop, once."""
    told = False
    while not (done := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGUSR1)  # where does it stand?
            time.sleep(0.5)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        if not told and WAITS.encode() in os.pread(said, _MOST, 0):
            told = True
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.001)
    return os.waitstatus_to_exitcode(done[1])


def _descendants() -> list[str]:
    """Processes that have become ours since who started them is gone; they are ended."""
    deadline = time.monotonic() + _GRACE
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return []
        if not pid and time.monotonic() > deadline:
            break
        time.sleep(0 if pid else 0.002)
    children = Path("/proc/self/task", str(os.getpid()), "children").read_text().split()
    names = [Path("/proc", child, "comm").read_text().strip() for child in children]
    for child in children:
        os.kill(int(child), signal.SIGKILL)
        os.waitpid(int(child), 0)
    return [f"process {name}" for name in names]


def _try(arguments: Sequence[str], patience: float, place: Path) -> Outcome:
    furnish(place)
    sockets, interfaces = _sockets(place), _interfaces()
    said = os.memfd_create("said")
    began = time.monotonic()
    pid = os.fork()
    if not pid:
        _run(arguments, place, said)
    code = _wait(pid, began + patience, said)
    seconds = time.monotonic() - began
    left = [*_descendants(), *(_sockets(place) - sockets), *(_interfaces() - interfaces)]
    text = os.pread(said, _MOST, 0).decode(errors="backslashreplace")
    os.close(said)
    return Outcome(code, text, seconds, left)


def _import_all() -> None:
    for module in pkgutil.walk_packages(aiovmm.__path__, "aiovmm."):
        if not module.name.endswith("__main__") and "aarch64" not in module.name:
            importlib.import_module(module.name)
    importlib.import_module("uvloop")


def _end(code: object) -> None:
    """As the interpreter does, but for freeing all that was imported."""
    getattr(threading, "_shutdown")()  # noqa: B009 (threads that are waited for)
    getattr(atexit, "_run_exitfuncs")()  # noqa: B009
    os._exit(code if isinstance(code, int) else bool(code))


def _run(arguments: Sequence[str], place: Path, said: int) -> None:
    """The process of a line."""
    code: object = 255
    try:
        _become(place, arguments, said)
        main()
    except SystemExit as exc:
        code = exc.code or 0
    except BaseException:
        traceback.print_exc()
    _end(code)


def _serve(lines: Iterable[str], patience: float) -> None:
    for arguments in map(json.loads, lines):
        place = Path(tempfile.mkdtemp(prefix="o"))
        print(json.dumps(asdict(_try(arguments, patience, place))), flush=True)
        shutil.rmtree(place)


if __name__ == "__main__":
    assert lib.avmm_cpuid
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    _import_all()
    frontend._UNTOLD = 0.0
    gc.collect()
    gc.freeze()
    _serve(sys.stdin.readlines(), float(sys.argv[1]))
