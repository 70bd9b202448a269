"""`aiovmm run`: consoles, exit codes, signals and events, as a shell and a script see them."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from tests.cli.conftest import Command

DEADLINE = 45.0


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Until it holds; fails with what the process said if that ends first."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if process.poll() is not None:
            assert condition(), process.communicate()
            return
        assert time.monotonic() < deadline
        time.sleep(0.01)


def read_until(stream: IO[bytes] | None, mark: bytes) -> bytes:
    """What comes up to and with `mark`."""
    assert stream is not None
    data = b""
    deadline = time.monotonic() + DEADLINE
    while mark not in data:
        assert select.select([stream], [], [], max(0, deadline - time.monotonic()))[0], data
        more = os.read(stream.fileno(), 4096)
        assert more, data
        data += more
    return data


# -- how it ends

CODES = {"o": 0, "r": 0, "Ut": 0, "t": 1, "u": 1, "cr Kernel panic - not syncing: x": 1}


@pytest.mark.parametrize(
    ("does", "code"), CODES.items(), ids=["power off", "reset", "triple fault", "early fault", "error", "panic"]
)
def test_exit_codes(does: str, code: int, aiovmm: Command, guest: list[str]) -> None:
    done = aiovmm.run(*guest, "--cmdline", does, "--on-reboot", "exit", "--serial", "null")
    assert done.returncode == code, done.stderr
    assert (b"the guest ended" in done.stderr) == bool(code)
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("status", [0, 3, 255])
def test_the_exit_code_of_what_the_guest_ran(status: int, aiovmm: Command, guest: list[str]) -> None:
    """`aiovmm image initramfs --run 'exit 3'`: our init says it on the console (image/init.sh)."""
    said = f"aiovmm: run end status={status}\n".encode()
    done = aiovmm.run(*guest, "--cmdline", "eo", stdin=b"\n" + said + b"q")
    assert done.stdout == b"\n" + said + b"q"
    assert done.returncode == status
    done = aiovmm.run(*guest, "--cmdline", "eo", stdin=b"echo " + said + b"q")
    assert done.returncode == 0, "it stands in a line with other text"


def test_an_error_names_the_instruction(aiovmm: Command, guest: list[str]) -> None:
    done = aiovmm.run(*guest, "--cmdline", "u", "--serial", "null")
    assert b"f3 0f b8 03" in done.stderr


def test_a_reset_restarts_the_guest(aiovmm: Command, guest: list[str]) -> None:
    process = aiovmm.start(*guest, "--cmdline", "her")
    assert process.stdin is not None
    for _ in range(3):
        read_until(process.stdout, b"hello\n")
        process.stdin.write(b"q")
        process.stdin.flush()
        read_until(process.stdout, b"q")


# -- consoles


def test_standard_input_and_output_as_they_are(aiovmm: Command, guest: list[str]) -> None:
    done = aiovmm.run(*guest, "--cmdline", "heo", stdin=b"typed in a script q")
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"hello\ntyped in a script q"
    assert done.stderr == b""


def test_the_end_of_input_does_not_end_the_guest(aiovmm: Command, guest: list[str]) -> None:
    process = aiovmm.start(*guest, "--cmdline", "hs", stdin=subprocess.DEVNULL)
    read_until(process.stdout, b"hello\n")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)


def test_a_file(aiovmm: Command, guest: list[str], tmp_path: Path) -> None:
    done = aiovmm.run(*guest, "--cmdline", "ho", "--serial", f"file={tmp_path / 'out'}")
    assert done.returncode == 0
    assert (tmp_path / "out").read_bytes() == b"hello\n"
    assert done.stdout == b""


def test_a_unix_socket(aiovmm: Command, guest: list[str], tmp_path: Path) -> None:
    path = tmp_path / "console"
    process = aiovmm.start(*guest, "--cmdline", "heo", "--serial", f"socket={path}")
    wait_for(path.exists, process)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(DEADLINE)
        peer.connect(str(path))
        with peer.makefile("rb", buffering=0) as stream:
            read_until(stream, b"hello\n")  # type: ignore[arg-type]
            peer.sendall(b"q")
            read_until(stream, b"q")  # type: ignore[arg-type]
    assert process.wait(DEADLINE) == 0
    assert not path.exists()


def test_a_pseudo_terminal(aiovmm: Command, guest: list[str]) -> None:
    process = aiovmm.start(*guest, "--cmdline", "heo", "--serial", "pty")
    line = read_until(process.stderr, b"\n")
    name = line.split()[-1].decode()
    assert name.startswith("/dev/pts/")
    with open(name, "r+b", buffering=0) as terminal:
        read_until(terminal, b"hello\n")
        terminal.write(b"q")
        read_until(terminal, b"q")
    assert process.wait(DEADLINE) == 0


def test_null_and_off(aiovmm: Command, guest: list[str]) -> None:
    for mode in ("null", "off"):
        done = aiovmm.run(*guest, "--cmdline", "ho", "--serial", mode)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_console_that_cannot_be_opened(aiovmm: Command, guest: list[str], tmp_path: Path) -> None:
    done = aiovmm.run(*guest, "--cmdline", "s", "--serial", f"file={tmp_path}/none/out")
    assert done.returncode == 1
    assert b"none/out" in done.stderr
    assert b"Traceback" not in done.stderr


# -- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_presses_the_button(number: int, aiovmm: Command, guest: list[str]) -> None:
    process = aiovmm.start(*guest, "--cmdline", "hbo", "--json")
    read_until(process.stdout, b"hello\n")
    process.send_signal(number)
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0
    assert [json.loads(line)["event"] for line in err.splitlines()] == ["started", "power-button", "stopped"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_kills(number: int, aiovmm: Command, guest: list[str]) -> None:
    process = aiovmm.start(*guest, "--cmdline", "hs", "--json", "--stop-timeout", "1000")
    read_until(process.stdout, b"hello\n")
    process.send_signal(number)
    told = read_until(process.stderr, b"power-button")
    process.send_signal(number)
    _, err = process.communicate(timeout=DEADLINE)
    last = json.loads((told + err).splitlines()[-1])
    assert (last["event"], last["reason"]) == ("stopped", "killed")
    assert process.returncode == 1, "it did not power off by itself"


def test_a_guest_that_does_not_heed_the_button_is_killed_in_time(aiovmm: Command, guest: list[str]) -> None:
    process = aiovmm.start(*guest, "--cmdline", "hs", "--stop-timeout", "0.2")
    read_until(process.stdout, b"hello\n")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=DEADLINE)
    assert b"did not power off within 0.2 s" in err


def test_a_terminal_that_hangs_up_kills(aiovmm: Command, guest: list[str]) -> None:
    process = aiovmm.start(*guest, "--cmdline", "hbo", "--json")
    read_until(process.stdout, b"hello\n")
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=DEADLINE)
    assert json.loads(err.splitlines()[-1])["detail"] == "by SIGHUP"


def test_a_signal_while_it_is_being_built(aiovmm: Command, guest: list[str], tmp_path: Path) -> None:
    """At whatever moment it comes, it ends without a traceback and leaves no socket behind."""
    path = tmp_path / "console"
    for delay in (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4):
        process = aiovmm.start(*guest, "--cmdline", "s", "--serial", f"socket={path}", "--stop-timeout", "0")
        time.sleep(delay)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=DEADLINE)
        assert b"Traceback" not in err, err
        assert process.returncode in (1, -signal.SIGTERM)
        assert not path.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "option",
    [
        "--net=vhost_user=on,vhost_mode=server,socket={}",
        "--net=vhost_user=on,socket={}",
        "--disk=vhost_user=on,socket={}",
        "--fs=tag=t,socket={}",
        "--generic-vhost-user=device_type=rng,queue_sizes=[64],socket={}",
    ],
)
def test_a_signal_while_it_waits_for_a_back_end(
    option: str, number: int, aiovmm: Command, guest: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "net.sock"
    process = aiovmm.start(*guest, option.format(path))
    read_until(process.stderr, b"waits for its back end")
    process.send_signal(number)
    _, err = process.communicate(timeout=DEADLINE)
    assert err.endswith(b"aiovmm: ended by a signal before the guest was there\n"), err
    assert process.returncode == 1
    assert not path.exists()


# -- events


def test_events_are_complete_before_it_exits(aiovmm: Command, guest: list[str]) -> None:
    for _ in range(5):
        done = aiovmm.run(*guest, "--cmdline", "o", "--json", "--name", "one", "--serial", "null")
        rows = [json.loads(line) for line in done.stderr.splitlines()]
        assert [row["event"] for row in rows] == ["started", "stopped"]
        assert rows[-1]["reason"] == "shutdown"
        assert {row["vm"] for row in rows} == {"one"}


def test_a_reader_of_events_that_is_gone_does_not_stop_the_guest(aiovmm: Command, guest: list[str]) -> None:
    process = aiovmm.start(*guest, "--cmdline", "heo", "--json")
    assert process.stderr is not None
    assert process.stdin is not None
    read_until(process.stdout, b"hello\n")
    process.stderr.close()
    process.stderr = None
    process.stdin.write(b"q")
    process.stdin.flush()
    assert process.wait(DEADLINE) == 0


@pytest.mark.parametrize("ignored", [True, False], ids=["nohup", "heeded"])
def test_who_is_to_outlive_its_terminal_does(ignored: bool, aiovmm: Command, guest: list[str]) -> None:
    def nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)

    process = aiovmm.start(*guest, "--cmdline", "heo", preexec_fn=nohup)
    read_until(process.stdout, b"hello")
    process.send_signal(signal.SIGHUP)
    if ignored:
        assert process.stdin is not None
        process.stdin.write(b"xq")
        process.stdin.flush()
        read_until(process.stdout, b"x")
    assert process.wait(DEADLINE) == int(not ignored)
    assert (b"by SIGHUP" in process.communicate()[1]) == (not ignored)
