"""`aiovmm run --user`: the guest runs on, with all of its devices and over its resets, in a process that is root's no more."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.cli.test_confinement import PROGRAM as TRIES
from tests.cli.test_confinement import devices, needs_landlock
from tests.everybodys import everybodys
from tests.limits import HANGS

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

WHOSE = """    print("ids:", *os.getresuid(), *os.getresgid(), os.getgroups(), file=sys.stderr)
    tried("back", lambda: os.setresuid(0, 0, 0))
    await start(vm)
"""
PROGRAM = TRIES.replace("    await start(vm)\n", WHOSE)


@pytest.fixture
def guest(guest: list[str]) -> Iterator[list[str]]:
    """Its kernel where anybody may read it again, wherever this tree is."""
    at = guest.index("--kernel") + 1
    with everybodys(Path(guest[at])) as kernel:
        yield [*guest[:at], str(kernel), *guest[at + 1 :]]


def told(stderr: bytes) -> dict[str, str]:
    return dict(line.split(": ") for line in stderr.decode().splitlines() if line.count(": ") == 1)


@pytest.mark.parametrize(
    "more",
    [["--seccomp", "false"], [], pytest.param(["--landlock"], marks=needs_landlock), ["--namespaces"]],
    ids=["user", "calls", "paths", "mounts"],
)
def test_a_guest_of_somebody_else_runs(more: list[str], aiovmm: Command, guest: list[str], tmp_path: Path) -> None:
    """Where its files are only root gets to."""
    tmp_path.chmod(0o700)
    program = PROGRAM.replace('os.execv("/bin/true", ["true"])', "None") if more[:1] == ["--seccomp"] else PROGRAM
    command = [*guest, "--cmdline", "heo", *devices(tmp_path), "--user", "4321:8765", *more]
    done = subprocess.run(
        [sys.executable, "-c", program, *command], input=b"q", capture_output=True, timeout=60, cwd=tmp_path
    )
    assert (done.stdout[:5], done.returncode) == (b"hello", 0), done.stderr
    found = told(done.stderr)
    assert found["ids"] == "4321 4321 4321 8765 8765 8765 []"
    assert (found["back"], found["file"]) == (os.strerror(1), os.strerror(2 if "--namespaces" in more else 13))
    assert found["module"] == "done"


def test_the_option_has_another_name_which_is_the_same_with_a_root(aiovmm: Command, guest: list[str]) -> None:
    done = aiovmm.run(*guest, "--cmdline", "ho", "--host-user", "nobody")
    assert (done.returncode, done.stdout[:5], done.stderr) == (0, b"hello", b"")
    done = aiovmm.run(*guest, "--cmdline", "ho", "--host-user", "nobody", "--user", "nobody")
    assert done.returncode == 2
    assert b"leave one of them out" in done.stderr
    done = aiovmm.run(*guest, "--cmdline", "ho", "--host-user", "root")
    assert b"--host-user: root is root's" in done.stderr


def test_it_is_started_again_by_its_reset(aiovmm: Command, guest: list[str]) -> None:
    process = aiovmm.start(*guest, "--cmdline", "her", "--user", "nobody")
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.read(6) == b"hello\n"
    process.stdin.write(b"q")
    process.stdin.flush()
    assert process.stdout.read(7) == b"qhello\n"
    process.terminate()
    process.terminate()
    _, error = process.communicate(timeout=HANGS)
    assert b"Traceback" not in error


def test_others_ask_at_a_socket_that_is_root_s(aiovmm: Command, guest: list[str], tmp_path: Path) -> None:
    """In a directory where the user could make none; the command then answers there as it is."""
    (tmp_path / "roots").mkdir(mode=0o700)
    control = tmp_path / "roots" / "control"
    process = aiovmm.start(*guest, "--cmdline", "heo", "--user", "nobody", "--control-socket", str(control))
    assert process.stdout is not None
    assert process.stdout.read(6) == b"hello\n"
    status = control.lstat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, 0)
    asked = aiovmm.run("remove", str(control), "none")
    assert b"none" in asked.stderr, asked
    assert b"asking a guest's monitor" not in asked.stderr, "somebody listens"
    assert process.stdin is not None
    _, error = process.communicate(b"q", timeout=HANGS)
    assert (process.returncode, error) == (0, b"")


def test_names_of_sockets_that_the_user_may_not_remove_stay(aiovmm: Command, guest: list[str]) -> None:
    """And the guest ended as it ended. In a directory that all can look into."""
    names = ("vsock", "hvc0", "control")
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        vsock, console, control = (f"{place}/{name}" for name in names)
        places = ("--vsock", f"cid=3,socket={vsock}", "--console", f"socket={console}", "--control-socket", control)
        for _ in range(2):  # those of the first do not keep the second from starting
            done = aiovmm.run(*guest, "--cmdline", "heo", "--user", "nobody", *places, stdin=b"q")
            assert (done.returncode, done.stdout[:5]) == (0, b"hello"), done
            assert done.stderr.decode() == f"aiovmm: vm.console is at {console}\n"
            assert {*os.listdir(place)} == {*names}


def test_what_it_could_not_open_again_is_named_before_the_guest_runs(
    aiovmm: Command, guest: list[str], tmp_path: Path
) -> None:
    initramfs = tmp_path / "initramfs"
    initramfs.write_bytes(b"070701")
    initramfs.chmod(0o600)
    done = aiovmm.run(*guest, "--cmdline", "ho", "--initramfs", str(initramfs), "--user", "nobody")
    error = done.stderr.decode()
    assert (done.returncode, done.stdout) == (2, b"")
    assert f"user nobody could not read {initramfs} (--initramfs)" in error
    assert "chown" in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--user", "nosuchuser"], "there is no user 'nosuchuser'"),
        (["--user", "root"], "root's, which is to be given up"),
        (["--user", "4321"], "4321:GID"),
        (["--user="], "is nobody"),
        (["--user", "nobody", "--user", "daemon"], "is given twice"),
        (["--user", "nobody", "--device", "path=/sys/bus/pci/devices/0000:00:00.0"], "leave --user out"),
    ],
)
def test_what_cannot_be_is_said(arguments: list[str], said: str, aiovmm: Command, guest: list[str]) -> None:
    done = aiovmm.run(*guest, "--cmdline", "u", *arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert said in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
