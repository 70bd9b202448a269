"""Threads that may fail to begin, by every Python that is at hand: what is done about it rests on how `threading` waits."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aiovmm.runtime import threads

KNOWN = [(3, 11), (3, 12), (3, 13), (3, 14)]
LOAD = """
import importlib.util, sys, threading, time
def load():
    spec = importlib.util.spec_from_file_location("threads", sys.argv[1])
    threads = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(threads)
    return threads
def runs(threads):
    ran = []
    thread = threads.Thread(lambda: ran.append(threading.current_thread().name), name="VM: works")
    before = threading.active_count()
    thread.start()
    thread.join()
    assert ran == ["VM: works"] and not thread.is_alive() and threading.active_count() == before
"""
NEVER_BEGINS = """
threads = load()
assert threads._IS_KNOWN, "another threading: see the module"
runs(threads)
name = "_start_joinable_thread" if hasattr(threading, "_start_joinable_thread") else "_start_new_thread"
starts = getattr(threading, name)
setattr(threading, name, lambda function, *args, **kwargs: None)
thread = threads.Thread(lambda: None, name="x")
try:
    thread.start()
except RuntimeError as error:
    assert "no memory" in str(error)
else:
    raise AssertionError("it has begun")
assert not thread.is_alive() and thread not in threading.enumerate()
setattr(threading, name, starts)
runs(threads)
"""
ANOTHER = """
start = threading.Thread.start
def starts_otherwise(self):
    start(self)
threading.Thread.start = starts_otherwise
threads = load()
assert not threads._IS_KNOWN
assert type(threads.Thread(None, name="x")._started) is threading.Event
runs(threads)
"""


def pythons() -> list[str]:
    """The running one, and others that start."""
    found = [sys.executable]
    for version in KNOWN:
        path = shutil.which(f"python{version[0]}.{version[1]}")
        if (
            path
            and version != sys.version_info[:2]
            and not subprocess.run([path, "-c", ""], capture_output=True).returncode
        ):
            found.append(path)
    return found


@pytest.mark.parametrize("python", pythons())
@pytest.mark.parametrize("program", [NEVER_BEGINS, ANOTHER], ids=["never begins", "another threading"])
def test_a_thread_that_never_begins(python: str, program: str) -> None:
    command = [python, "-c", LOAD + program, str(Path(threads.__file__))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr


def test_this_python_is_known() -> None:
    assert (sys.version_info[:2] in KNOWN) == threads._IS_KNOWN, "look how its threading.Thread.start waits"
