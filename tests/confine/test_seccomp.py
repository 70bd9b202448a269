"""A process that has given up its calls: in one of its own, which says what it still could do."""

from __future__ import annotations

import subprocess
import sys

from tests.confine.tried import TRIED

PROGRAM = (
    TRIED
    + """
import os, signal, socket, subprocess, threading

from aiovmm.confine.seccomp import confine_calls

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
