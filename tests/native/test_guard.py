"""SIGBUS: an access to memory that is gone reads zeros; everything else about the signal is as without us (guard.h)."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading

import pytest

from aiovmm.memory import GuestMemory
from aiovmm.native.mapping import GuestMapping
from aiovmm.vhost_user.inflight import InflightRecord

SIZE = 64 << 10
PRELUDE = """
import ctypes, faulthandler, mmap, os, signal, sys
from aiovmm.native.mapping import GuestMapping

def handled():
    bits = next(int(l.split()[1], 16) for l in open("/proc/self/status") if l.startswith("SigCgt"))
    return bool(bits >> (signal.SIGBUS - 1) & 1)

def cut(size=65536, kind=GuestMapping):
    fd = os.memfd_create("cut")
    os.ftruncate(fd, size)
    mapping = kind(fd, size)
    os.ftruncate(fd, 0)
    return mapping
"""


def in_a_process(code: str) -> tuple[int, str, str]:
    """It has no handler of pytest's."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONFAULTHANDLER"}
    environment["ASAN_OPTIONS"] = environment.get("ASAN_OPTIONS", "") + ":handle_sigbus=0"
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code], capture_output=True, text=True, check=False, timeout=50, env=environment
    )
    return done.returncode, done.stdout, done.stderr


def test_memory_that_is_gone_reads_as_zeros_and_is_known_to_be_lost() -> None:
    fd = os.memfd_create("cut")
    os.ftruncate(fd, SIZE)
    mapping, other = GuestMapping(fd, SIZE), GuestMapping(-1, SIZE)
    mapping[:] = other[:] = b"x" * SIZE
    assert mapping.lost is None
    os.ftruncate(fd, 4096)
    assert mapping[4095:4096] == b"x", "what is there still is there"
    assert mapping.lost is None
    assert mapping[8193:8195] == bytes(2)
    assert mapping.lost == 8193
    mapping[-1] = 7
    assert mapping[-1] == 7
    assert mapping.lost == 8193
    assert (other.lost, other[:]) == (None, b"x" * SIZE)
    mapping.close()
    other.close()
    os.close(fd)


def test_who_is_to_be_told_is_told_once_lost_and_not_after() -> None:
    fd, told = os.memfd_create("cut"), os.eventfd(0, os.EFD_NONBLOCK)
    os.ftruncate(fd, SIZE)
    mapping = GuestMapping(fd, SIZE)
    mapping.tell_loss(told)
    os.ftruncate(fd, 0)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(told)
    thread = threading.Thread(target=lambda: mapping[0])
    thread.start()
    thread.join()
    assert os.eventfd_read(told) == 1
    mapping.tell_loss(told)
    assert os.eventfd_read(told) == 1, "it is lost already"
    mapping.tell_loss(-1)
    mapping.close()
    for each in (fd, told):
        os.close(each)


def test_a_view_is_guarded_as_long_as_it_lives() -> None:
    fd = os.memfd_create("cut")
    os.ftruncate(fd, SIZE)
    mapping = GuestMapping(fd, SIZE)
    view = memoryview(mapping)
    mapping.close()
    os.ftruncate(fd, 0)
    assert view[100] == 0
    assert mapping.lost == 100
    view.release()
    mapping.close()
    assert mapping.closed
    assert mapping.lost == 100
    os.close(fd)


def test_many_threads_find_it_gone_at_once() -> None:
    fd = os.memfd_create("cut")
    os.ftruncate(fd, SIZE)
    mapping = GuestMapping(fd, SIZE)
    gate = threading.Barrier(8)
    found: list[bytes] = []

    def look(at: int) -> None:
        gate.wait()
        found.append(mapping[at : at + 16])

    threads = [threading.Thread(target=look, args=(4096 * n,)) for n in range(8)]
    os.ftruncate(fd, 0)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [bytes(16)] * 8
    mapping.close()
    os.close(fd)


def test_the_handler_is_there_only_while_there_is_memory_to_guard() -> None:
    code = """
was = handled()
one, two = cut(), cut()
assert handled()
one.close()
assert handled()
del two
print(was, handled())
three = cut()
print(three[5], three.lost)
"""
    assert in_a_process(code) == (0, "False False\n0 5\n", "")


def test_other_faults_end_the_process_as_ever() -> None:
    code, out, _ = in_a_process("mine = cut()\nprint(mine[1], flush=True)\ncut(kind=mmap.mmap)[0]")
    assert (code, out) == (-signal.SIGBUS, "0\n")


def test_a_handler_that_was_there_before_is_asked() -> None:
    code, out, err = in_a_process(
        "faulthandler.enable()\nmine = cut()\nprint(mine[1], flush=True)\ncut(kind=mmap.mmap)[0]"
    )
    assert (code, out) == (-signal.SIGBUS, "0\n")
    assert "Fatal Python error: Bus error" in err
    assert "<string>" in err


def test_a_handler_that_came_later_hands_on_and_is_handed_on_to() -> None:
    program = """
mine = cut()
faulthandler.enable()   # before ours now, and has ours as the one before
again = cut()           # puts ours first
print(mine[1], again[2], flush=True)
cut(kind=mmap.mmap)[0]
"""
    code, out, err = in_a_process(program)
    assert (code, out) == (-signal.SIGBUS, "0 0\n")
    assert err.count("Fatal Python error: Bus error") == 1


@pytest.mark.parametrize(
    ("before", "expected"),
    [("SIG_DFL", (-signal.SIGBUS, "")), ("SIG_IGN", (0, "on\n")), ("lambda *_: print('told')", (0, "told\non\n"))],
)
def test_a_signal_that_was_sent_does_what_it_did(before: str, expected: tuple[int, str]) -> None:
    before = before if before.startswith("lambda") else f"signal.{before}"
    code = f"""
signal.signal(signal.SIGBUS, {before})
mine = cut()
os.kill(os.getpid(), signal.SIGBUS)
print("on")
"""
    assert in_a_process(code)[:2] == expected


@pytest.mark.parametrize("kind", ["memory", "in-flight record"])
def test_a_peer_cannot_cut_what_we_gave_it(kind: str) -> None:
    memory = GuestMemory.create([(0, SIZE)])
    fd = memory.regions[0].fd if kind == "memory" else InflightRecord.create(1, 64)[1]
    theirs = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    size = os.fstat(fd).st_size
    for change in (0, size + 4096):
        with pytest.raises(PermissionError) as refused:
            os.ftruncate(theirs, change)
        assert refused.value.errno == errno.EPERM
    assert os.fstat(fd).st_size == size
    os.close(theirs)
    memory.close()
    if kind != "memory":
        os.close(fd)
