"""`aiovmm exec` and `aiovmm cp`, with the real agent behind a socket like a guest's."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import socket as socket_
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiovmm.agent import agent_binary
from tests.agent.hybrid import HybridFront
from tests.cli.conftest import Command
from tests.limits import HANGS


@pytest.fixture
def socket(tmp_path: Path) -> Iterator[str]:
    process = subprocess.Popen([agent_binary(), "--unix", tmp_path / "agent"])
    front = HybridFront(tmp_path / "vsock", tmp_path / "agent")
    yield str(tmp_path / "vsock")
    front.close()
    process.kill()
    process.wait()


def test_streams_and_status(aiovmm: Command, socket: str) -> None:
    done = aiovmm.run("exec", socket, "--", "sh", "-c", "cat; echo err >&2; exit 7", stdin=b"\xff in\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"\xff in\n", b"err\n")


def test_options_of_the_command_are_its_own(aiovmm: Command, socket: str) -> None:
    done = aiovmm.run("exec", "-e", "A=b c", "-w", "/tmp", "-u", "65534", socket, "sh", "-c", "echo $A; pwd; id -u")
    assert done.stdout == b"b c\n/tmp\n65534\n"


def test_much_output_and_input(aiovmm: Command, socket: str) -> None:
    data = os.urandom(5 << 20)
    assert aiovmm.run("exec", socket, "cat", stdin=data).stdout == data


def test_a_file_as_input(aiovmm: Command, socket: str, tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(b"from a file")
    with open(tmp_path / "input", "rb") as file:
        process = aiovmm.start("exec", socket, "cat", stdin=file)
        assert process.communicate(timeout=HANGS)[0] == b"from a file"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("no-such-command",), 127, b"no-such-command"),
        (("/etc/passwd",), 126, b"/etc/passwd"),
        (("/etc/passwd/x",), 126, b"Not a directory"),
        (("/",), 126, b"denied"),
        (("sh", "-c", "kill -TERM $$"), 143, b""),
    ],
)
def test_exit_codes(aiovmm: Command, socket: str, words: tuple[str, ...], code: int, said: bytes) -> None:
    done = aiovmm.run("exec", socket, "--", *words)
    assert done.returncode == code
    assert said in done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stderr.count(b"\n") == bool(said)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("exec",), 2, b"Missing argument"),
        (("exec", "SOCKET"), 2, b"Missing argument"),
        (("exec", "--user", "no-such-user", "SOCKET", "true"), 125, b"no-such-user"),
        (("exec", "--user", "root:no-such-group", "SOCKET", "true"), 125, b"or its group not in its /etc/group"),
        (("exec", "SOCKET", "-u", "nobody", "true"), 2, b"-u: options come before SOCKET"),
        (("exec", "--env", "novalue", "SOCKET", "true"), 2, b"NAME=VALUE"),
        (("exec", "nowhere", "true"), 125, b"aiovmm run --vsock socket=PATH"),
        (("exec", "-t", "SOCKET", "true"), 2, b"not a terminal"),
        (("cp", "a", "b"), 2, b"SOCKET:/PATH"),
        (("cp", "SOCKET:/a", "SOCKET:/b"), 2, b"SOCKET:/PATH"),
        (("cp", "SOCKET:/no/such", "x"), 1, b"/no/such"),
        (("cp", "nowhere", "SOCKET:/tmp"), 1, b"nowhere"),
    ],
)
def test_what_cannot_be_is_one_line(
    aiovmm: Command, socket: str, arguments: tuple[str, ...], code: int, said: bytes
) -> None:
    done = aiovmm.run(*(word.replace("SOCKET", socket) for word in arguments))
    assert done.returncode == code
    assert said in done.stderr
    assert b"Traceback" not in done.stderr


def test_over_time(aiovmm: Command, socket: str) -> None:
    done = aiovmm.run("exec", "--timeout", "0.5", socket, "sh", "-c", "echo so far; sleep 60")
    assert (done.returncode, done.stdout) == (124, b"so far\n")
    assert b"0.5 s" in done.stderr


def test_a_daemon_is_not_waited_for(aiovmm: Command, socket: str) -> None:
    """It has all three streams."""
    script = "echo before; setsid sleep 67 & echo $!; echo err >&2; exit 4"
    process = aiovmm.start("exec", socket, "sh", "-c", script)
    stdout, stderr = process.communicate(timeout=HANGS)
    before, pid = stdout.split()
    os.kill(int(pid), signal.SIGKILL)  # it lives
    assert (process.returncode, before, stderr) == (4, b"before", b"err\n")


def test_no_agent(aiovmm: Command, tmp_path: Path) -> None:
    front = HybridFront(tmp_path / "vsock", tmp_path / "none")
    done = aiovmm.run("exec", "--wait", "0.3", str(tmp_path / "vsock"), "true")
    front.close()
    assert done.returncode == 125
    assert b"--agent" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_go_to_the_command(aiovmm: Command, socket: str, number: signal.Signals) -> None:
    script = f"trap 'echo heard; exit 5' {number.name[3:]}; echo up; while :; do sleep 0.05; done"
    process = aiovmm.start("exec", socket, "sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.send_signal(number)
    assert process.communicate(timeout=HANGS)[0] == b"heard\n"
    assert process.returncode == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("words", [("exec", "VSOCK", "true"), ("cp", "VSOCK:/etc/passwd", "copy")])
def test_a_signal_before_the_command_runs(
    aiovmm: Command, tmp_path: Path, words: tuple[str, ...], number: signal.Signals
) -> None:
    asked = threading.Event()

    class Front(HybridFront):
        def _serve(self, client: socket_.socket) -> None:
            asked.set()
            super()._serve(client)

    front = Front(tmp_path / "vsock", tmp_path / "none")
    process = aiovmm.start(*(word.replace("VSOCK", str(tmp_path / "vsock")) for word in words))
    assert asked.wait(HANGS)
    process.send_signal(number)
    assert process.communicate(timeout=HANGS) == (b"", b"")
    assert process.returncode == 128 + number
    front.close()


def test_the_command_ends_when_its_output_is_not_read_any_more(aiovmm: Command, socket: str) -> None:
    process = aiovmm.start("exec", socket, "yes")
    assert process.stdout is not None
    assert process.stdout.read(2) == b"y\n"
    process.stdout.close()
    process.wait(HANGS)
    assert process.stderr is not None
    assert process.stderr.read() == b""


def test_output_that_there_is_no_room_for(aiovmm: Command, socket: str) -> None:
    with open("/dev/full", "wb") as full:
        process = aiovmm.start("exec", socket, "echo", "x", stdout=full)
        assert process.wait(HANGS) == 125
    assert process.stderr is not None
    said = process.stderr.read()
    assert said.startswith(b"aiovmm: writing what the command printed: No space left on device")
    assert said.count(b"\n") == 1


def test_input_that_cannot_be_read_is_no_end_of_it_without_a_word(aiovmm: Command, socket: str) -> None:
    with open(os.devnull, "wb") as unreadable:
        process = aiovmm.start("exec", socket, "cat", stdin=unreadable)
        assert process.communicate(timeout=HANGS) == (
            b"",
            b"aiovmm: standard input cannot be read: Bad file descriptor\n",
        )


def test_a_terminal(aiovmm: Command, socket: str) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 111, 0, 0))
    before = termios.tcgetattr(slave)
    script = "until [ \"$(stty size)\" = '33 111' ]; do sleep 0.05; done; echo sized; read a; echo got $a; exit 3"
    process = aiovmm.start("exec", "-t", socket, "sh", "-c", script, stdin=slave, stdout=slave)
    seen = _until(master, b"sized\r\n")
    os.write(master, b"word\r")
    seen = _until(master, b"got word\r\n")
    assert b"word\r\n" in seen  # the guest's terminal echoes, ours does not
    assert process.wait(HANGS) == 3
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize(
    ("options", "shown"),
    [(["-t"], b"\x1b]52;c;eA==\x07\x1b[6n\x1b[31mred"), (["-t", "--filter"], b"\x1b[31mred"), ([], b"\x1b[31mred")],
    ids=["tty", "filtered", "no tty"],
)
def test_a_terminal_is_shown_what_draws_alone_if_it_is_not_the_commands_or_filtered(
    aiovmm: Command, socket: str, options: list[str], shown: bytes
) -> None:
    master, slave = pty.openpty()
    script = r"printf '\033]52;c;eA==\007\033[6n\033[31mred'"
    process = aiovmm.start("exec", *options, socket, "sh", "-c", script, stdin=slave, stdout=slave)
    assert _until(master, b"red")[: len(shown)] == shown  # and then what the terminal is left with
    assert process.wait(HANGS) == 0
    os.close(master)
    os.close(slave)


def test_a_terminal_that_goes(aiovmm: Command, socket: str) -> None:
    """Without a signal: it was not the one that controls the session."""
    master, slave = pty.openpty()
    process = aiovmm.start("exec", "-t", socket, "sh", "-c", "echo up; exec sleep 60", stdin=slave, stdout=slave)
    os.close(slave)
    _until(master, b"up\r\n")
    os.close(master)
    assert process.wait(30) == 128 + signal.SIGHUP


def _until(fd: int, text: bytes) -> bytes:
    seen, end = b"", time.monotonic() + 30
    while text not in seen and time.monotonic() < end:
        seen += os.read(fd, 4096)
    assert text in seen
    return seen


def test_cp_of_what_is_no_file(aiovmm: Command, socket: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for words in ((f"{socket}:{tmp_path}/pipe", "copy"), (f"{tmp_path}/pipe", f"{socket}:{tmp_path}/copy")):
        done = aiovmm.run("cp", *words)
        assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
        assert b"pipe: no file, directory or link" in done.stderr
    done = aiovmm.run("cp", f"{socket}:/etc/passwd", f"{tmp_path}/pipe")
    assert done.returncode == 1
    assert b"a pipe or a socket, which is not replaced" in done.stderr
    assert (tmp_path / "pipe").is_fifo()


def test_cp_both_ways(aiovmm: Command, socket: str, tmp_path: Path) -> None:
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/file").write_bytes(b"content")
    (tmp_path / "guest").mkdir()
    assert aiovmm.run("cp", "tree", f"{socket}:{tmp_path}/guest").returncode == 0
    assert (tmp_path / "guest/tree/sub/file").read_bytes() == b"content"
    assert aiovmm.run("cp", f"{socket}:{tmp_path}/guest/tree/sub/file", "copy").returncode == 0
    assert (tmp_path / "copy").read_bytes() == b"content"
    (tmp_path / "guest/tree/link").symlink_to("/etc")
    (tmp_path / "here").mkdir()
    done = aiovmm.run("cp", f"{socket}:{tmp_path}/guest/tree", "here")
    assert done.returncode == 0
    assert b"left out: link" in done.stderr
    assert (tmp_path / "here/tree/sub/file").read_bytes() == b"content"
