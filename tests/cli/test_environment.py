"""Where a monitor is started: without standard streams, with outputs that take nothing, under limits of every kind."""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from aiovmm.cli.session import _what_is_wrong
from tests.cli.conftest import Command
from tests.cli.test_run import DEADLINE, read_until, wait_for
from tests.limits import HANGS

ROOT = Path(__file__).resolve().parents[2]


def closing(*fds: int) -> Callable[[], None]:
    """For preexec_fn."""

    def close() -> None:
        for fd in fds:
            os.close(fd)

    return close


def limited(**limits: int) -> Callable[[], None]:
    """For preexec_fn: resource limits by their names without RLIMIT_."""

    def limit() -> None:
        for name, value in limits.items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))

    return limit


# -- standard streams that are not there


@pytest.mark.parametrize("missing", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)], ids=str)
def test_closed_standard_descriptors(
    missing: tuple[int, ...], aiovmm: Command, guest: list[str], tmp_path: Path
) -> None:
    """The guest runs to its end, and what goes to a stream that is there arrives there, and nothing else does."""
    out, err = tmp_path / "out", tmp_path / "err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = aiovmm.start(
            *guest,
            "--cmdline",
            "ho",
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            preexec_fn=closing(*missing),
        )
        assert process.wait(DEADLINE) == 0, err.read_bytes()
    assert out.read_bytes() == (b"" if 1 in missing else b"hello\n")
    if 2 not in missing:
        told = err.read_bytes()
        assert (b"standard output is closed" in told) == (1 in missing)
        assert told.count(b"\n") == (1 in missing)


@pytest.mark.parametrize("command", [["doctor"], ["devices"], ["--version"], ["run"], ["attach", "none"]], ids=str)
def test_every_command_with_nothing_open(command: list[str], aiovmm: Command) -> None:
    process = aiovmm.start(*command, stdin=None, stdout=None, stderr=None, preexec_fn=closing(0, 1, 2))
    assert process.wait(DEADLINE) in (0, 1, 2)


@pytest.mark.parametrize("example", ["boot", "disk_and_network"])
def test_examples_with_nothing_open(example: str, tmp_path: Path) -> None:
    """They end as they would with streams: for want of a kernel, not by an abort of uvloop's."""
    command = [sys.executable, "-m", f"examples.{example}", *[str(tmp_path / "none")] * 3]
    done = subprocess.run(command, cwd=ROOT, preexec_fn=closing(0, 1, 2), timeout=DEADLINE)
    assert done.returncode == 1


def test_a_program_of_ones_own_under_uvloop() -> None:
    code = (
        "from aiovmm.runtime.stdio import fill_standard_descriptors\n"
        "missing = fill_standard_descriptors()\n"
        "import asyncio, sys, uvloop\n"
        "uvloop.run(asyncio.sleep(0))\n"
        "print('never seen', file=sys.stderr)\n"
        "sys.exit(0 if missing == (0, 1, 2) and fill_standard_descriptors() == () else 1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, preexec_fn=closing(0, 1, 2), timeout=DEADLINE)
    assert done.returncode == 0


@pytest.mark.parametrize(("stream", "mode"), [("stdin", "wb"), ("stdout", "rb")])
def test_a_standard_stream_the_wrong_way_round(
    stream: str, mode: str, aiovmm: Command, guest: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with (tmp_path / "file").open(mode) as file:
        process = aiovmm.start(*guest, "--cmdline", "ho", **{stream: file})
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 2
    assert b"standard %sput: Bad file descriptor" % stream.removeprefix("std").removesuffix("put").encode() in err
    assert err.count(b"\n") == 1


# -- outputs that take nothing


def check_the_guest_ends_by_itself(process: subprocess.Popen[bytes], code: int, word: bytes) -> None:
    """It reads its input up to the q, though what it prints is lost; one line says so."""
    _, err = process.communicate(b"lost q", DEADLINE)
    assert process.returncode == code, err
    assert err.count(b"\n") == 1, err
    assert word in err
    assert b"the guest runs on" in err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("size", ["eo", "hF1eo"], ids=["echo", "flood"])
def test_a_full_standard_output(size: str, aiovmm: Command, guest: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        process = aiovmm.start(*guest, "--cmdline", size, stdout=full)
    check_the_guest_ends_by_itself(process, 1, b"standard output: write the guest's output: No space left on device")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("console", ["--serial", "--debug-console"])
def test_output_is_lost_also_if_its_place_takes_none_only_when_the_guest_has_ended(
    console: str, aiovmm: Command, guest: list[str]
) -> None:
    """The file is written by a thread: of a guest that prints little and goes it fails after all events."""
    for _ in range(3):
        done = aiovmm.run(*guest, "--cmdline", "hDo", console, "file=/dev/full")
        assert done.returncode == 1
        assert b"No space left on device" in done.stderr


def test_a_limit_of_file_sizes(aiovmm: Command, guest: list[str], tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        process = aiovmm.start(*guest, "--cmdline", "F1eo", stdout=out, preexec_fn=limited(FSIZE=65536))
    check_the_guest_ends_by_itself(process, 1, b"ulimit -f`, now 65536")
    assert (tmp_path / "out").stat().st_size == 65536


def test_a_reader_of_standard_output_that_leaves(aiovmm: Command, guest: list[str]) -> None:
    process = aiovmm.start(*guest, "--cmdline", "hF1eo")
    read_until(process.stdout, b"hello\n")
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    check_the_guest_ends_by_itself(process, 0, b"nobody reads standard output any more")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_console_file_that_is_full_is_said_at_once(aiovmm: Command, guest: list[str]) -> None:
    process = aiovmm.start(*guest, "--cmdline", "hs", "--serial", "file=/dev/full")
    read_until(process.stderr, b"No space left on device")
    assert process.poll() is None
    process.send_signal(signal.SIGHUP)
    assert process.wait(DEADLINE) == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize(
    "command", [["doctor"], ["devices"], ["devices", "--json"], ["--help"], ["--version"]], ids=str
)
def test_other_commands_to_a_full_output(command: list[str], aiovmm: Command) -> None:
    with open("/dev/full", "wb") as full:
        process = aiovmm.start(*command, stdout=full)
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1
    assert b"No space left on device" in err
    assert err.count(b"\n") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize(
    ("command", "code"),
    [(["run"], 2), (["run", "--kernel", "/none"], 2), (["--version"], 1), (["attach", "/none"], 1)],
    ids=str,
)
def test_the_exit_code_tells_where_no_stream_can(command: list[str], code: int, aiovmm: Command) -> None:
    with open("/dev/full", "wb") as full:
        process = aiovmm.start(*command, stdout=full, stderr=full)
    assert process.wait(DEADLINE) == code


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_standard_error(aiovmm: Command, guest: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        process = aiovmm.start(*guest, "--cmdline", "ho", "--json", "-vv", stderr=full)
    out, _ = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out) == (0, b"hello\n")


# -- limits


def no_traceback(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    out, err = process.communicate(b"", DEADLINE)
    assert b"Traceback" not in err, err
    assert b"never awaited" not in err, err
    return process.returncode, out, err


def test_few_descriptors(aiovmm: Command, guest: list[str]) -> None:
    """With each number of them it either runs, or says in one line which limit to raise."""
    outcomes = set()
    for number in range(6, 24):
        code, out, err = no_traceback(aiovmm.start(*guest, "--cmdline", "ho", preexec_fn=limited(NOFILE=number)))
        outcomes.add(code)
        if code:
            assert err.count(b"\n") == 1, (number, err)
            assert b"ulimit -n" in err, (number, err)
            assert str(number).encode() in err
        else:
            assert out == b"hello\n"
    assert outcomes == {0, 1}


@pytest.mark.parametrize(
    "command",
    [
        ["snapshot", "ctl", "s"],
        ["resize", "ctl", "--cpus", "1"],
        ["remove", "ctl", "disk0"],
        ["add", "ctl", "--disk", "path=disk"],
        ["attach", "ctl"],
        ["exec", "ctl", "--", "true"],
        ["cp", "ctl:/etc/motd", "motd"],
        ["fork", "s"],
    ],
    ids=lambda command: command[0],
)
def test_few_descriptors_of_other_commands(command: list[str], aiovmm: Command, tmp_path: Path) -> None:
    """One line that says which limit, and not what else might be wrong, at any number of them that is too small."""
    for number in (5, 6, 8):
        code, out, err = no_traceback(aiovmm.start(*command, preexec_fn=limited(NOFILE=number)))
        if b"ulimit -n" in err:
            assert (code, out) == (1, b"")
            assert err.count(b"\n") == 1, (number, err)
        else:
            assert number == 8, err
            assert b"No such file" in err  # nobody listens here


def test_little_address_space(aiovmm: Command, guest: list[str]) -> None:
    for mib in (40, 60, 100):
        no_traceback(aiovmm.start(*guest, "--cmdline", "ho", preexec_fn=limited(AS=mib << 20)))
    code, _, err = no_traceback(
        aiovmm.start(*guest[:3], "--memory", "8G", "--cmdline", "ho", preexec_fn=limited(AS=4 << 30))
    )
    assert code == 1
    assert err.count(b"\n") == 1
    assert b"ulimit -v" in err


def test_no_locked_memory_is_no_hindrance(aiovmm: Command, guest: list[str]) -> None:
    code, out, err = no_traceback(aiovmm.start(*guest, "--cmdline", "ho", preexec_fn=limited(MEMLOCK=0)))
    assert (code, out) == (0, b"hello\n"), err


def test_no_file_may_be_written(aiovmm: Command, guest: list[str]) -> None:
    """RLIMIT_FSIZE 0: nothing can be kept in a cache, and pipes are no files."""
    code, out, err = no_traceback(aiovmm.start(*guest, "--cmdline", "ho", preexec_fn=limited(FSIZE=0)))
    assert (code, out) == (0, b"hello\n"), err


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["exec", "socket", "true"], 125),
        (["snapshot", "socket", "there"], 1),
        (["add", "socket", "--disk", "path=a"], 1),
        (["disk", "create", "new", "--size", "1M"], 1),
        (["run", "--kernel", "k", "--log-file", "log"], 1),
    ],
    ids=str,
)
def test_a_working_directory_that_was_removed_is_said(
    command: list[str], code: int, aiovmm: Command, tmp_path: Path
) -> None:
    def lose() -> None:
        (tmp_path / "lost").mkdir()
        os.chdir(tmp_path / "lost")
        os.rmdir(tmp_path / "lost")

    process = aiovmm.start(*command, preexec_fn=lose)
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == code, err
    assert b"the working directory is not there any more: change to one that is" in err
    assert err.count(b"\n") == 1


def test_no_thread_can_be_started(aiovmm: Command, guest: list[str], tmp_path: Path) -> None:
    """As under `ulimit -u`, which does not hold for root: by a C library that refuses."""
    refuses = tmp_path / "refuses.so"
    source = "int pthread_create(void *a, void *b, void *c, void *d) { return 11; } /* EAGAIN */"
    subprocess.run(["gcc", "-shared", "-fPIC", "-x", "c", "-o", refuses, "-"], input=source, text=True, check=True)
    environment = {**os.environ, "LD_PRELOAD": str(refuses), "XDG_CACHE_HOME": str(tmp_path)}
    code, _, err = no_traceback(aiovmm.start(*guest, "--cmdline", "ho", env=environment))
    assert code == 1
    assert err.count(b"\n") == 1
    assert b"ulimit -u" in err


# -- files that are written


def test_a_console_file_is_its_owners_alone(aiovmm: Command, guest: list[str], tmp_path: Path) -> None:
    aiovmm.run(*guest, "--cmdline", "ho", "--serial", f"file={tmp_path / 'out'}")
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o600


@pytest.mark.parametrize("option", ["--serial=file={}", "--json={}"])
def test_a_link_is_not_followed(option: str, aiovmm: Command, guest: list[str], tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "out").symlink_to("victim")
    done = aiovmm.run(*guest, "--cmdline", "ho", option.format(tmp_path / "out"))
    assert done.returncode == 2
    assert b"symbolic link" in done.stderr
    assert (tmp_path / "victim").read_bytes() == b"precious"


@pytest.mark.parametrize("option", ["--serial=file={}", "--json={}"])
def test_an_image_in_use_is_not_an_output(option: str, aiovmm: Command, guest: list[str], tmp_path: Path) -> None:
    """Of the same VM, then of another."""
    image, before = tmp_path / "disk", os.urandom(1 << 20)
    image.write_bytes(before)
    disk = ["--disk", f"path={image}"]
    for user, here in (([], disk), (disk, [])):
        if user:
            other = aiovmm.start(*guest, "--cmdline", "hs", *user)
            read_until(other.stdout, b"hello\n")
        done = aiovmm.run(*guest, "--cmdline", "ho", *here, option.format(image))
        assert done.returncode == 2, done.stderr
        assert re.search(b"in use|is the guest's disk", done.stderr)
        assert image.read_bytes() == before


@pytest.mark.parametrize("option", ["--serial=file={}", "--console=file={}", "--json={}"])
@pytest.mark.parametrize("what", ["kernel", "initramfs", "source of entropy"])
def test_an_input_is_not_an_output(what: str, option: str, aiovmm: Command, guest: list[str], tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    before = Path(guest[2]).read_bytes() if what == "kernel" else b"an archive"
    victim.write_bytes(before)
    arguments = ["run", "--kernel", str(victim if what == "kernel" else guest[2]), "--memory", "4M", "--cmdline", "ho"]
    arguments += {"initramfs": ["--initramfs", str(victim)], "source of entropy": ["--rng", f"src={victim}"]}.get(
        what, []
    )
    done = aiovmm.run(*arguments, option.format(f"{tmp_path}/./victim"))
    assert done.returncode == 2
    assert f"victim is the guest's {what}".encode() in done.stderr
    assert victim.read_bytes() == before


def test_events_alone_on_a_stream_of_their_own(aiovmm: Command, guest: list[str], tmp_path: Path) -> None:
    import json

    reading, writing = os.pipe()
    process = aiovmm.start(*guest, "--cmdline", "ho", f"--json={writing}", "-vv", pass_fds=[writing])
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        rows = [json.loads(line) for line in stream]
    assert process.wait(DEADLINE) == 0
    assert [row["event"] for row in rows] == ["started", "stopped"]
    done = aiovmm.run(*guest, "--cmdline", "uo", "--serial", "null", f"--json={tmp_path}/events")
    assert [json.loads(line)["event"] for line in (tmp_path / "events").open()] == ["started", "stopped"]
    assert b"the guest ended" in done.stderr
    done = aiovmm.run(*guest, "--cmdline", "o", "--json=")
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"--json: is no file" in done.stderr
    for number in ("77", "9" * 5000):
        done = aiovmm.run(*guest, "--cmdline", "o", f"--json={number}")
        assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
        assert f"descriptor {number[:20]}".encode() in done.stderr


@pytest.mark.parametrize("option", ["--net=fd={}", "--json={}"])
def test_a_descriptor_that_nobody_has_passed_on(option: str, aiovmm: Command, guest: list[str]) -> None:
    """Some of these numbers are the event loop's own when they are looked at: its sockets are no network."""
    for fd in range(3, 20):
        done = aiovmm.run(*guest, "--cmdline", "o", option.format(fd))
        assert done.returncode == 2, fd
        assert f"no descriptor {fd} ".encode() in done.stderr


def test_a_reader_that_is_slow_holds_up_no_one(aiovmm: Command, guest: list[str]) -> None:
    process = aiovmm.start(*guest, "--cmdline", "F1eo")
    assert process.stdin is not None
    process.stdin.write(b"q")
    process.stdin.flush()
    stream: IO[bytes] | None = process.stdout
    assert stream is not None
    wait_for(lambda: True, process)
    assert len(stream.read()) >= 1 << 18
    assert process.wait(DEADLINE) == 0


def test_a_signal_ends_the_wait_for_a_reader_that_does_not_read(aiovmm: Command, guest: list[str]) -> None:
    process = aiovmm.start(*guest, "--cmdline", "F1o", "--json")
    read_until(process.stderr, b"stopped")  # and the pipe is full
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE) == 0


def test_standard_streams_are_looked_at_without_waiting_for_others_who_read_them() -> None:
    master, slave = os.openpty()
    reader = threading.Thread(target=os.read, args=(slave, 1))
    reader.start()
    call = Path(f"/proc/self/task/{reader.native_id}/syscall")
    while not call.read_text().startswith(f"0 {slave:#x}"):  # it waits in read(2)
        assert reader.is_alive()
    found: list[int] = []
    looker = threading.Thread(target=lambda: found.append(_what_is_wrong(slave, os.O_WRONLY)))
    looker.start()
    looker.join(HANGS)
    told = list(found)
    os.write(master, b"\n")
    reader.join()
    looker.join()
    assert told == [0]
    for fd in (master, slave):
        os.close(fd)


@pytest.mark.parametrize(
    ("flags", "wrong", "code"),
    [
        (os.O_RDONLY, os.O_RDONLY, errno.EBADF),
        (os.O_WRONLY, os.O_WRONLY, errno.EBADF),
        (os.O_RDWR, os.O_RDONLY, 0),
        (os.O_RDONLY | os.O_DIRECTORY, os.O_WRONLY, errno.EISDIR),
    ],
)
def test_what_is_no_standard_stream(flags: int, wrong: int, code: int, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fd = os.open(tmp_path if flags & os.O_DIRECTORY else tmp_path / "file", flags)
    assert _what_is_wrong(fd, wrong) == code
    os.close(fd)
    assert _what_is_wrong(fd, wrong) == errno.EBADF
