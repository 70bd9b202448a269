"""A process with mounts of its own, which says what there still is."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiovmm.confine.namespaces import _outermost
from aiovmm.confine.paths import KEEP, READ, RUN, Grant
from aiovmm.errors import ConfigError
from tests.confine.tried import TRIED
from tests.limits import HANGS

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = (
    TRIED
    + """
import os, re, sys
from pathlib import Path
from aiovmm.confine.namespaces import enter_namespaces
from aiovmm.confine.paths import KEEP, READ, RUN, Grant

if len(sys.argv) > 2:  # as on a kernel without
    from aiovmm.confine import landlock
    landlock.lib = type("Kernel", (), {"avmm_landlock_version": lambda: -38})
place = Path(sys.argv[1])
held = os.open(place / "outside", os.O_RDWR | os.O_CREAT)
os.chdir(place / "kept")
grants = [Grant(place / "kept", KEEP), Grant(place / "kept" / "below", READ), Grant(place / "read" / "file", READ)]
grants += [Grant(place / "link", READ), Grant(Path("/proc"), RUN), Grant(Path("/lib"), RUN), Grant(Path("none"), READ)]
enter_namespaces(grants, "--namespaces")

tried("make", lambda: Path("new").write_text("x"))
tried("make below", lambda: Path("below/new").write_text("x"))
tried("read", (place / "read" / "file").read_text)
tried("write what is read", lambda: (place / "read" / "file").write_text("x"))
tried("read beside it", (place / "read" / "other").read_text)
tried("read by a link", (place / "link" / "inside").read_text)
tried("make at the root", lambda: Path("/new").write_text("x"))
tried("look outside", lambda: os.listdir("/etc"))
tried("write what is held", lambda: os.write(held, b"x"))
tried("go up", lambda: os.listdir("/../../etc"))
tried("go by another process", lambda: os.listdir(f"/proc/{os.getppid()}/root/etc"))
tried("go by its files", lambda: os.readlink(f"/proc/{os.getppid()}/fd/0"))
tried("go by its memory", lambda: os.open(f"/proc/{os.getppid()}/mem", os.O_RDONLY))
tried("go by one like us", lambda: os.listdir(f"/proc/{sys.argv[-1]}/root/lib"))
tried("make a device", lambda: os.mknod("device", 0o060600, os.makedev(7, 0)))
tried("go by our own", lambda: os.listdir("/proc/self/root/proc/self/fd"))
tried("rename", lambda: os.rename(place / "kept" / "new", place / "kept" / "moved" / "new"))
tried("rename back", lambda: os.rename(place / "kept" / "moved" / "new", place / "kept" / "new"))
told = Path("/proc/self/status").read_text()
print("root:", *sorted(os.listdir("/")))
print("ids:", *os.getresuid(), *os.getresgid())
print("can:", int(re.search("CapPrm:\\t(.*)", told)[1], 16), int(re.search("CapEff:\\t(.*)", told)[1], 16))
if os.geteuid():
    tried("another", lambda: enter_namespaces([], "again"))
print("gains:", re.search("NoNewPrivs:\\t(.*)", told)[1], flush=True)
sys.stdin.read()
"""
)


@pytest.fixture
def place() -> Iterator[Path]:
    """Everybody's, as is the way to it."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:  # the tests' own one is nobody else's
        place = Path(name).resolve()
        for folder in ("kept/below", "kept/moved", "read", "led"):
            (place / folder).mkdir(parents=True)
        for file in ("read/file", "read/other", "led/inside"):
            (place / file).write_text("there")
        (place / "link").symlink_to("led")
        for path in (place, *place.rglob("*")):
            path.chmod(0o777)
        yield place


def started(place: Path, user: list[str], other: str) -> subprocess.Popen[str]:
    command = [*user, sys.executable, "-c", PROGRAM, str(place), *other.split()]
    environment, pipe = {**os.environ, "PYTHONPATH": str(ROOT)}, subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def told_by(place: Path, user: list[str], other: str = "") -> dict[str, str]:
    process = started(place, user, other)
    out, errors = process.communicate(timeout=HANGS)
    assert process.returncode == 0, errors
    return dict(line.split(": ", 1) for line in out.splitlines())


def check(told: dict[str, str], place: Path) -> None:
    not_there, read_only = os.strerror(2), os.strerror(30)
    assert told["make"] == told["make below"] == told["read"] == told["read by a link"] == "done"
    assert told["write what is held"] == "done"
    assert told["write what is read"] == told["make at the root"] == read_only
    assert told["go by our own"] == told["rename"] == told["rename back"] == "done"
    assert told["go by another process"] == told["go by its files"] == told["go by its memory"] == os.strerror(13)
    assert told["make a device"] == os.strerror(1)
    assert told["read beside it"] == told["look outside"] == told["go up"] == not_there
    assert set(told["root"].split()) == {place.parts[1], "lib", "proc", "usr"}
    assert (place / "kept" / "new").read_text() == "x"
    assert (place / "outside").read_text() == "x"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_has_no_path_but_what_is_granted_and_stays_root(place: Path) -> None:
    told = told_by(place, [])
    check(told, place)
    assert told["ids"] == "0 0 0 0 0 0"
    assert told["can"].split()[1] != "0", "TAPs are to be made"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_without_landlock_root_is_kept_from_other_processes_and_from_those_that_have_given_up_as_much(
    place: Path,
) -> None:
    other = started(place, [], "0")
    assert other.stdout is not None
    for line in other.stdout:
        if line.startswith("gains"):
            break
    (place / "kept" / "new").unlink()
    told = told_by(place, [], str(other.pid))
    other.communicate(timeout=HANGS)
    check(told, place)
    assert told["go by one like us"] == os.strerror(13)
    assert told["gains"] == "1", "what it starts would have all capabilities again"
    assert int(told["can"].split()[0]) & (1 << 12), "TAPs are to be made"


def test_who_is_not_root_has_a_user_namespace_and_nothing_in_it(place: Path) -> None:
    user = ["setpriv", "--reuid=4321", "--regid=8765", "--clear-groups", "--"] if os.geteuid() == 0 else []
    if subprocess.run([*user, "unshare", "--user", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs unprivileged user namespaces")
    if subprocess.run([*user, sys.executable, "-c", "import aiovmm.native"], cwd=ROOT, check=False).returncode:
        pytest.skip("this tree, or its interpreter, is not everybody's to read")
    told = told_by(place, user)
    check(told, place)
    assert not user or told["ids"] == "4321 4321 4321 8765 8765 8765"
    assert (told["can"], told["gains"]) == ("0 0", "1")
    assert told["another"] not in ("", "done")


def test_a_path_below_another_is_mounted_if_it_gives_more(tmp_path: Path) -> None:
    for name in ("a/b/c", "d"):
        (tmp_path / name).mkdir(parents=True)
    grants = [(".", READ), ("a", KEEP), ("a/b", RUN), ("a/b/c", KEEP), ("d", READ), ("none", KEEP)]
    kept = _outermost([Grant(tmp_path / name, rights) for name, rights in grants], "--namespaces")
    assert set(kept) == {str(tmp_path), str(tmp_path / "a")}
    with pytest.raises(ConfigError, match="there is no"):
        _outermost([Grant(tmp_path / "none", KEEP, needed=True)], "--namespaces")


def test_what_the_system_refuses_on_the_way_is_a_clear_error(tmp_path: Path) -> None:
    """As some do not let a new user namespace be told whose it is."""
    program = (
        "import os; from pathlib import Path; from aiovmm.confine import namespaces; from aiovmm.errors import HostError\n"
        "def refuses(error, hint):\n"
        "    try:\n"
        "        namespaces.enter_namespaces([], '--namespaces')\n"
        "    except HostError as exc:\n"
        "        assert exc.errno == error.errno and ('leave it out' in exc.hint) is hint, exc\n"
        "def told():\n"
        "    raise PermissionError(13, 'no', '/proc/self/setgroups')\n"
        "namespaces._unshare = told; refuses(PermissionError(13, ''), True)\n"
        "os.rmdir(os.getcwd()); refuses(FileNotFoundError(2, ''), False)\n"
    )
    place = tmp_path / "gone"
    place.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_threads_that_would_stay_outside_are_a_clear_error() -> None:
    program = (
        "import threading; from aiovmm.confine.namespaces import enter_namespaces\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "enter_namespaces([], '--namespaces')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "has threads already" in done.stderr
