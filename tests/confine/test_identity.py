"""Whom a process is to be, and what it is then: in processes of their own, since there is no way back."""

from __future__ import annotations

import os
import platform
import pwd
import subprocess
import sys

import pytest

from aiovmm.confine.identity import Identity, find, what_is_left
from aiovmm.errors import ConfigError
from tests.confine.tried import TRIED

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
NOBODY = pwd.getpwnam("nobody")

PROGRAM = (
    TRIED
    + """
import os, threading
from pathlib import Path
from aiovmm.confine.identity import become, find, keep_from_gaining

identity = find("4321:8765", "--user")
keep_from_gaining()
done = threading.Event()
others = [threading.Thread(target=done.wait) for _ in range(3)]
for other in others:
    other.start()
become(identity, "--user")
print("ids:", *os.getresuid(), *os.getresgid(), os.getgroups())
for name, call in {
    "user": lambda: os.setresuid(0, 0, 0),
    "group": lambda: os.setresgid(0, 0, 0),
    "groups": lambda: os.setgroups([0]),
    "file": lambda: open("/etc/shadow").close(),
    "owner": lambda: os.chown("/etc/passwd", 4321, 8765),
    "init": lambda: os.kill(1, 0),
    "root": lambda: os.chroot("/"),
    "pagemap": lambda: open("/proc/self/pagemap", "rb").close(),
}.items():
    tried(name, call)
done.set()
"""
)


@needs_root
def test_there_is_nothing_of_root_left_and_no_way_back() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    refused = os.strerror(1)
    assert dict(line.split(": ") for line in done.stdout.splitlines()) == {
        "ids": "4321 4321 4321 8765 8765 8765 []",
        "file": os.strerror(13),
        "pagemap": "done",
        **dict.fromkeys(("user", "group", "groups", "owner", "init", "root"), refused),
    }


@needs_root
def test_a_process_that_would_keep_capabilities_says_so_and_has_not_gone_on() -> None:
    program = (
        "import ctypes\n"
        "from aiovmm.confine.identity import become, find, keep_from_gaining\n"
        "PR_SET_KEEPCAPS = 8\n"
        "assert ctypes.CDLL(None).prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) == 0\n"
        "identity = find('4321:8765', '--user')\n"
        "keep_from_gaining()\n"
        "become(identity, '--user')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "a thread has CapPrm" in done.stderr.splitlines()[-1]


WORKER = """
import ctypes, mmap, os, struct, sys
from pathlib import Path
from aiovmm.confine.identity import become, find, keep_from_gaining

identity = find("4321:8765", "--user")
keep_from_gaining()
libc, SETUP, ENTER, ASYNC, READ = ctypes.CDLL(None), 425, 426, 16, 22
params = bytearray(120)
ring = libc.syscall(SETUP, 1, (ctypes.c_char * 120).from_buffer(params))
if ring < 0:
    sys.exit("no io_uring")
tail, array = *struct.unpack_from("<I", params, 44), *struct.unpack_from("<I", params, 64)
queue = mmap.mmap(ring, array + 4)
entries = mmap.mmap(ring, 64, offset=0x10000000)
reader, _writer = os.pipe()
place = (ctypes.c_char * 1)()
struct.pack_into("<BBHiQQI", entries, 0, READ, ASYNC, 0, reader, 0, ctypes.addressof(place), 1)
struct.pack_into("<I", queue, array, 0)
struct.pack_into("<I", queue, tail, 1)
assert libc.syscall(ENTER, ring, 1, 0, 0, None, 0) == 1
names = lambda: [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
while not any(name.startswith("iou-wrk") for name in names()):
    pass
become(identity, "--user")
print("done")
"""


@needs_root
def test_the_kernel_s_own_workers_in_a_process_are_nobody_s_threads() -> None:
    """A request of io_uring that waits has one, which stays root's."""
    done = subprocess.run([sys.executable, "-c", WORKER], capture_output=True, text=True, timeout=60)
    if done.stderr == "no io_uring\n":
        pytest.skip("io_uring is refused")
    assert (done.stdout, done.stderr) == ("done\n", "")


KEYS = """
import ctypes
from aiovmm.confine.identity import become, find, keep_from_gaining

ADD, KEYCTL, SESSION, JOIN, READ = {numbers}, -3, 1, 11
libc, place = ctypes.CDLL(None, use_errno=True), (ctypes.c_char * 8)()
if libc.syscall(KEYCTL, JOIN, None) < 0:
    raise SystemExit("no keyrings")
key = libc.syscall(ADD, b"user", b"aiovmm-test", b"secret", 6, SESSION)
assert libc.syscall(KEYCTL, READ, key, place, 8) == 6
identity = find("4321:8765", "--user")
keep_from_gaining()
become(identity, "--user")
print(libc.syscall(KEYCTL, READ, key, place, 8), libc.syscall(KEYCTL, JOIN, None) > 0)
"""


@needs_root
def test_the_keys_of_root_s_session_are_not_the_user_s() -> None:
    numbers = (217, 219) if platform.machine() == "aarch64" else (248, 250)  # of add_key(2) and keyctl(2)
    program = KEYS.format(numbers=f"{numbers[0]}, {numbers[1]}")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    if done.stderr == "no keyrings\n":
        pytest.skip("keyctl is refused")
    assert (done.stdout, done.stderr) == ("-1 True\n", "")


@needs_root
@pytest.mark.parametrize(
    ("text", "identity"),
    [
        ("nobody", (NOBODY.pw_uid, NOBODY.pw_gid)),
        (str(NOBODY.pw_uid), (NOBODY.pw_uid, NOBODY.pw_gid)),
        ("nobody:77", (NOBODY.pw_uid, 77)),
        ("nobody:daemon", (NOBODY.pw_uid, 1)),
        ("4000000000:4294967294", (4000000000, 4294967294)),
    ],
)
def test_users_and_groups_go_by_name_and_number(text: str, identity: tuple[int, int]) -> None:
    found = find(text, "--user")
    assert (found.uid, found.gid) == identity


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is nobody"),
        (":7", "is nobody"),
        ("nobody:", "is nobody"),
        ("no such user", "there is no user 'no such user'"),
        ("nobody:nosuch", "there is no group 'nosuch'"),
        ("4321", "4321:GID"),
        ("4294967295:1", "no number of a user"),
        ("1:99999999999", "no number of a user"),
        ("-1:5", "there is no user '-1'"),
        ("root", "root's"),
        ("0:5", "root's"),
        ("5:0", "root's"),
        ("\u0663:5", "there is no user"),
    ],
)
def test_who_cannot_be_is_said(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as info:
        find(text, "--user")
    assert str(info.value).startswith("--user")


def test_who_is_not_root_cannot_become_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match="only root can become nobody"):
        find("nobody", "--user")


CLEAN = {
    "Uid": "7\t7\t7\t7",
    "Gid": "8\t8\t8\t8",
    "Groups": "",
    "NoNewPrivs": "1",
    **dict.fromkeys(("CapPrm", "CapEff", "CapAmb"), "0000000000000000"),
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"Uid": "7\t7\t0\t7"}, "a thread has Uid 7 7 0 7"),
        ({"Gid": "8\t8\t8\t0"}, "a thread has Gid 8 8 8 0"),
        ({"Groups": "0 5"}, "a thread is in groups 0 5"),
        ({"CapPrm": "0000000000000001"}, "a thread has CapPrm 0000000000000001"),
        ({"CapAmb": "0000000000002000"}, "a thread has CapAmb 0000000000002000"),
        ({"NoNewPrivs": "0"}, "a thread may gain rights by what it executes"),
    ],
)
def test_what_is_left_in_a_thread_is_seen(changes: dict[str, str], said: str) -> None:
    assert what_is_left({**CLEAN, **changes}, Identity("x", 7, 8)) == said
