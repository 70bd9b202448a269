"""`aiovmm snapshot`, `aiovmm run --restore` and `aiovmm fork`, each a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from aiovmm.cli.restore import Wanted, parse_restore
from aiovmm.errors import ConfigError
from tests.cli.waiting import TIME, until
from tests.guests import build_kernel

pytestmark = pytest.mark.kvm
AIOVMM = (sys.executable, "-m", "aiovmm")


def run(*words: str | Path, cwd: Path, said: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*AIOVMM, *map(str, words)], cwd=cwd, input=said, capture_output=True, timeout=TIME, check=False
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A directory with a snapshot in `s`, of a guest that then waits for three times a 'q', and powers off."""
    return save(tmp_path, "hehehehoe")


def save(tmp_path: Path, does: str) -> Path:
    """Likewise of a guest that does this (tests/guests/kernel.S)."""
    guest = ("run", "--kernel", build_kernel("kernel"), "--memory", "64M", "--cmdline", does, "--name", "warm")
    places = ("--serial", "socket=serial", "--control-socket", "control", "--vsock", "cid=5")
    with subprocess.Popen([*AIOVMM, *map(str, guest), *places], cwd=tmp_path, stderr=subprocess.PIPE) as monitor:
        try:
            until(lambda: (tmp_path / "control").exists())
            done = run("snapshot", "control", "s", cwd=tmp_path)
            assert (done.returncode, done.stdout) == (0, b"")
            assert b"KiB of memory; the guest stood still for" in done.stderr
            failed = run("snapshot", "control", "none/there", cwd=tmp_path)
            assert (failed.returncode, failed.stderr.count(b"\n")) == (1, 1)
            assert b"No such file" in failed.stderr
            assert monitor.poll() is None, "the guest goes on"
        finally:
            monitor.kill()
    return tmp_path


@pytest.mark.usefixtures("writes_are_known")
def test_increments_by_the_command(saved: Path) -> None:
    """Of a guest that was restored: over what it was restored from, and over that again; a third process goes on."""
    places = ("--serial", "socket=again", "--control-socket", "other")  # those of the first were left by a SIGKILL
    with subprocess.Popen(
        [*AIOVMM, "run", "--restore", f"source_url=file://{saved}/s", *places], cwd=saved, stderr=subprocess.DEVNULL
    ) as monitor:
        try:
            until(lambda: (saved / "other").exists())
            for words, code, said in (
                (("t", "--base", "s"), 0, b"KiB of memory"),
                (("u", "--base", "t"), 0, b"KiB of memory"),
                (("v", "--base", "none"), 1, b"No such file"),
                (("s", "--base", "u"), 2, b"needed by the new one"),
            ):
                done = run("snapshot", "other", *words, cwd=saved)
                assert (done.returncode, done.stderr.count(b"\n")) == (code, 1), done.stderr
                assert said in done.stderr
        finally:
            monitor.kill()
    done = run("run", "--restore", f"source_url=file://{saved}/u", "--serial", "tty", cwd=saved, said=b"qqq")
    assert done.returncode == 0, done.stderr


def test_a_guest_goes_on_in_another_process(saved: Path) -> None:
    for words in ((), (",prefault=on",)):
        source = "".join((f"source_url=file://{saved}/s", *words))
        done = run("run", "--restore", source, "--serial", "tty", cwd=saved, said=b"qqq")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(b"hello") == 3


def test_several_guests_go_on_in_one(saved: Path) -> None:
    command = [*AIOVMM, "fork", "s", "-n", "4", "--sockets", ".", "--stop-timeout", "0.1"]
    with subprocess.Popen(command, cwd=saved, stderr=subprocess.PIPE) as monitor:
        until(lambda: len(list(saved.glob("warm-?.serial"))) == 4)
        assert len(list(saved.glob("warm-?.vsock"))) == 4
        assert monitor.stderr is not None
        assert monitor.stderr.readline() == b"aiovmm: 4 guests run: warm-0 to warm-3\n"
        monitor.send_signal(signal.SIGTERM)
        assert monitor.wait(TIME) == 1, "they did not power off by themselves"


def test_a_second_signal_kills_forks(saved: Path) -> None:
    """Which do not heed the power button, and have time."""
    with subprocess.Popen([*AIOVMM, "fork", "s", "-n", "2"], cwd=saved, stderr=subprocess.PIPE) as monitor:
        assert monitor.stderr is not None
        assert b"2 guests run" in monitor.stderr.readline()
        monitor.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            monitor.wait(0.5)
        monitor.send_signal(signal.SIGINT)
        assert monitor.wait(5) == 1
        assert monitor.stderr.read().count(b"by a signal") == 2


def test_a_signal_while_forks_are_made(saved: Path) -> None:
    """The rest of them is not made."""
    command = [*AIOVMM, "fork", "s", "-n", "2000", "--sockets", "."]
    with subprocess.Popen(command, cwd=saved, stderr=subprocess.PIPE) as monitor:
        until(lambda: (saved / "warm-0.serial").exists())
        monitor.send_signal(signal.SIGTERM)
        assert monitor.stderr is not None
        assert monitor.stderr.read() == b"aiovmm: ended by a signal before the guests were there\n"
        assert monitor.wait(TIME) == 1


@pytest.mark.parametrize(("does", "code"), [("heo", 0), ("het", 1)], ids=["power-off", "triple-fault"])
def test_forks_say_how_their_guests_ended(tmp_path: Path, does: str, code: int) -> None:
    save(tmp_path, does)
    command = [*AIOVMM, "fork", "s", "-n", "2", "--sockets", "."]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE) as monitor:
        for name in ("warm-0.serial", "warm-1.serial"):
            until(lambda name=name: (tmp_path / name).exists())  # type: ignore[misc]
            with socket.socket(socket.AF_UNIX) as serial:
                serial.connect(str(tmp_path / name))
                serial.sendall(b"q")
                while serial.recv(4096):  # until it has ended
                    pass
        assert monitor.stderr is not None
        said = monitor.stderr.read()
        assert (monitor.wait(TIME), said.count(b" ended: ")) == (code, 2 * code), said


def test_forks_of_what_others_have_made_have_nothing_opened_elsewhere(
    saved: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = run("fork", "s", "--within", str(elsewhere), cwd=saved)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1), done.stderr
    assert b"only what is below" in done.stderr
    done = run("fork", "s", "--within", "", cwd=saved)
    assert (done.returncode, done.stderr) == (2, b"aiovmm: --within: is empty (say --within DIR, or leave it out)\n")
    command = [*AIOVMM, "fork", "s", "--within", "/", "--sockets", ".", "--stop-timeout", "0.1"]
    with subprocess.Popen(command, cwd=saved, stderr=subprocess.PIPE) as monitor:
        assert monitor.stderr is not None
        assert monitor.stderr.readline() == b"aiovmm: 1 guests run: warm-0 to warm-0\n"
        monitor.send_signal(signal.SIGTERM)
        assert monitor.wait(TIME) == 1


def test_what_does_not_go(saved: Path) -> None:
    source = f"source_url=file://{saved}/s"
    for words, what in (
        (("run", "--restore", source, "--memory", "64M"), b"--memory: does not go with --restore"),
        (("run", "--restore", "source_url=file:///none/there"), b"/none/there"),
        (("fork", "none"), b"No such file"),
        (("snapshot", "control", "s"), b"--control-socket PATH"),
    ):
        done = run(*words, cwd=saved)
        assert done.returncode in (1, 2)
        assert what in done.stderr
        assert done.stderr.count(b"\n") == 1, done.stderr
    (memory,) = (saved / "s").glob("memory-*")
    os.truncate(memory, 4096)
    done = run("run", "--restore", source, cwd=saved)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"cut short" in done.stderr


def test_a_card_on_a_descriptor_has_another_one_again(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    fd = theirs.fileno()
    guest = ("run", "--kernel", build_kernel("kernel"), "--memory", "64M", "--cmdline", "heo", "--net", f"fd={fd}")
    words = (*guest, "--serial", "null", "--control-socket", "control")
    with ours, theirs, subprocess.Popen([*AIOVMM, *map(str, words)], cwd=tmp_path, pass_fds=[fd]) as monitor:
        try:
            until((tmp_path / "control").exists)
            assert run("snapshot", "control", "s", cwd=tmp_path).returncode == 0
        finally:
            monitor.kill()
        source = f"source_url=file://{tmp_path}/s"
        for more, said in (
            ("", b"'net0' was on descriptors, and needs some again (say net_fds=[net0@[3]])"),
            (f",net_fds=[net0@{fd},other@{fd}]", b"there is no card 'other' that is on descriptors"),
            (",net_fds=[net0@99]", b"no descriptor 99 was given to this program"),
            (f",net_fds=[net0@[{fd},{fd + 1}]]", b"2 fds need num_queues=4, not 2"),
        ):
            done = run("run", "--restore", source + more, cwd=tmp_path)
            assert (done.returncode, done.stderr.count(b"\n")) == (2, 1), done.stderr
            assert said in done.stderr
        done = subprocess.run(
            [*AIOVMM, "run", "--restore", f"{source},net_fds=[net0@{fd}]", "--serial", "tty"],
            input=b"q",
            capture_output=True,
            timeout=TIME,
            check=False,
            pass_fds=[fd],
        )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("source_url=file:///a/b", Wanted(Path("/a/b"))),
        ("source_url=file://rel,prefault=on", Wanted(Path("rel"), prefault=True)),
        ("prefault=off,source_url=file:///with%20blank", Wanted(Path("/with blank"))),
        ('source_url="file:///a,b"', Wanted(Path("/a,b"))),
        ("source_url=file:///a,memory_restore_mode=Copy,resume=true", Wanted(Path("/a"), prefault=True)),
        ("source_url=file:///a,memory_restore_mode=ondemand,prefault=,resume=", Wanted(Path("/a"))),
        ("source_url=file:///a,net_fds=[n@[3-4],m@7]", Wanted(Path("/a"), net_fds={"n": (3, 4), "m": (7,)})),
    ],
)
def test_where_it_is(text: str, found: Wanted) -> None:
    assert parse_restore(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "source_url=",
        "source_url=/a",
        "source_url=http://a",
        "file:///a",
        "source_url=file:///a,x=1",
        "source_url=file:///a,resume=off",
        "source_url=file:///a,memory_restore_mode=lazily",
        "source_url=file:///a,memory_restore_mode=ondemand,prefault=on",
        "source_url=file:///a,net_fds=[net0]",
        "source_url=file:///a,net_fds=[n@3,n@4]",
        "source_url=file:///a,vfio_fds=[d@5],iommufd_fd=6",
        "source_url=file:///a,zone_updates=[z@1]",
    ],
)
def test_what_is_no_place(text: str) -> None:
    with pytest.raises(ConfigError, match="restore"):
        parse_restore(text)
