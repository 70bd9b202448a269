"""A process that has given up its calls: in one of its own, which says what it still could do."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.confine.tried import TRIED

PROGRAM = (
    TRIED
    + """
import fcntl, os, signal, socket, struct, subprocess, threading

from aiovmm.confine.seccomp import confine_calls
from aiovmm.native import ffi, lib

def ring():
    if error := -lib.avmm_uring_open(ffi.new("struct avmm_uring *"), 1, 1):
        raise OSError(error, os.strerror(error))

child = subprocess.Popen(["sleep", "60"])
gone, ready, done = [], threading.Event(), threading.Event()

def other_thread():
    ready.set()
    done.wait()
    tried("another thread executes", lambda: subprocess.run(["true"]))

thread = threading.Thread(target=other_thread)
thread.start()
ready.wait()
confine_calls()
done.set()
thread.join()
tried("execute", lambda: os.execv("/bin/true", ["true"]))
tried("fork", os.fork)
tried("inet", lambda: socket.socket(socket.AF_INET))
tried("unix", lambda: socket.socket(socket.AF_UNIX).close())
tried("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
tried("init", lambda: os.kill(1, 0))
tried("self", lambda: os.kill(os.getpid(), 0))
parent = os.getppid()
tried("group", lambda: os.kill(0, 0))
tried("by descriptor", lambda: signal.pidfd_send_signal(os.pidfd_open(parent), 0))
tried("by directory", lambda: signal.pidfd_send_signal(os.open(f"/proc/{parent}", os.O_RDONLY), 0))
pair = socket.socketpair()
tried("owner of a file", lambda: fcntl.fcntl(pair[0], fcntl.F_SETOWN, parent))
tried("owner of a file, too", lambda: fcntl.fcntl(pair[0], 15, struct.pack("ii", 1, parent)))
for command in (0x8901, 0x8902):
    tried(f"owner of a socket by {command:x}", lambda: fcntl.ioctl(pair[0], command, struct.pack("i", parent)))
tried("ring", ring)
tried("root", lambda: os.chroot("/"))
tried("nodes", lambda: os.mknod("/tmp/never"))
tried("owner", lambda: os.chown("/proc/self", 0, 0))
tried("rights", lambda: os.setuid(os.getuid()))
fresh = threading.Thread(target=print, args=("threads: done",), kwargs={"flush": True})
fresh.start()
fresh.join()
tried("helper", lambda: os.kill(child.pid, signal.SIGKILL))
print("waited:", child.wait())
"""
)


def test_what_is_given_up_fails_in_all_threads_and_the_rest_goes_on() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    refused = "Operation not permitted"
    assert dict(line.split(": ") for line in done.stdout.splitlines()) == {
        "another thread executes": refused,
        **dict.fromkeys(("execute", "fork", "inet", "netlink", "init", "root", "nodes", "owner", "rights"), refused),
        **dict.fromkeys(("group", "by descriptor", "by directory", "owner of a file", "owner of a file, too"), refused),
        **dict.fromkeys(("owner of a socket by 8901", "owner of a socket by 8902", "ring"), refused),
        **dict.fromkeys(("unix", "self", "threads", "helper"), "done"),
        "waited": "-9",
    }


def test_nothing_executed_later_gains_rights_and_a_trial_refuses_nothing() -> None:
    program = (
        "import subprocess\n"
        "from aiovmm.confine.seccomp import confine_calls\n"
        "confine_calls(log=True)\n"
        "print(subprocess.run(['grep', 'NoNewPrivs', '/proc/self/status'], capture_output=True, text=True).stdout)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["NoNewPrivs:", "1"], done.stderr


def test_a_helper_is_ended_by_its_number_where_descriptors_signal_nobody() -> None:
    program = (
        "import asyncio\n"
        "from aiovmm.confine.seccomp import confine_calls\n"
        "from aiovmm.runtime.child import Child\n"
        "async def run():\n"
        "    child = Child(['sleep', '60'])\n"
        "    confine_calls()\n"
        "    child.kill()\n"
        "    print(await child.wait())\n"
        "asyncio.run(run())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("-9\n", "")


@pytest.mark.parametrize("make", ["uvloop.new_event_loop", "asyncio.new_event_loop"])
def test_a_loop_without_a_ring_serves_and_leaves_no_thread(make: str) -> None:
    program = (
        "import asyncio, os, uvloop\n"
        "from aiovmm.confine.seccomp import without_rings\n"
        "async def run():\n"
        "    ours, theirs = os.pipe()\n"
        "    asyncio.get_running_loop().call_later(0.01, os.write, theirs, b'x')\n"
        "    heard = asyncio.Event()\n"
        "    asyncio.get_running_loop().add_reader(ours, heard.set)\n"
        "    await heard.wait()\n"
        "    return sum('io_uring' in os.readlink(entry.path) for entry in os.scandir('/proc/self/fd') if entry.is_symlink())\n"
        f"loop = without_rings({make})\n"
        "print(len(os.listdir('/proc/self/task')), loop.run_until_complete(run()))\n"
    )
    program = program.replace(
        "os.scandir('/proc/self/fd') if entry.is_symlink()", "list(os.scandir('/proc/self/fd'))[:-1]"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("1 0\n", "")


def test_what_a_loop_is_not_made_for_is_raised() -> None:
    program = "from aiovmm.confine.seccomp import without_rings\nwithout_rings(lambda: 1 / 0)\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")
