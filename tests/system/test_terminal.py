"""A person at a real terminal (tmux) with a stock guest, by `aiovmm run` on the terminal itself and by `aiovmm attach`."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiovmm import VMConfig
from tests.console.test_tmux import Tmux, check_sane
from tests.system.conftest import RELEASES, Guests

BOOT = 60.0


class SlowTmux(Tmux):
    """tmux in the nested host, where a boot takes its time."""

    def until(self, text: str, times: int = 1, timeout: float = BOOT) -> str:
        deadline = time.monotonic() + timeout
        while (shown := self("capture-pane", "-p", "-S", "-")).count(text) < times:
            assert time.monotonic() < deadline, f"no {text!r} in:\n{shown}"
            time.sleep(0.2)
        return shown


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[SlowTmux]:
    tmux = SlowTmux(tmp_path)
    yield tmux
    tmux("kill-server")


HVC0 = "console=hvc0 panic=-1 quiet"
ENDED = "; echo sta''tus=$?\r"  # prints what is nowhere in what was typed, however that is broken into lines
LOUD = "console=hvc0 panic=-1"  # the driver prints the kernel's messages while it joins the port


def command_line(config: VMConfig, *more: str, cmdline: str | None = None) -> str:
    payload = config.payload
    cmdline = payload.cmdline if cmdline is None else cmdline
    options = f"--kernel {payload.kernel} --initramfs {payload.initramfs} --cmdline '{cmdline}' --memory 256M"
    return " ".join(["aiovmm run", options, *more])


def test_attach_type_detach_and_attach_again(guests: Guests, tmux: SlowTmux, tmp_path: Path) -> None:
    socket = tmp_path / "serial"
    log = tmp_path / "log"
    with log.open("wb") as out:
        command = command_line(guests.config(), f"--serial socket={socket}")
        monitor = subprocess.Popen(["sh", "-c", f"exec {command}"], stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + BOOT
        while not socket.exists():
            assert monitor.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        tmux.type(f"aiovmm attach {socket}\r")
        tmux.until("guest:/root#")
        tmux.type("echo one-$((40+2))\r")
        tmux.until("one-42")
        tmux.type("sleep 1000; echo status-$?\r")
        tmux.until("sleep 1000")
        time.sleep(1)  # until the guest's shell has started it: a ctrl-c before that goes to the line being typed
        tmux.keys("C-c")
        tmux.until("guest:/root#", times=3)
        tmux.keys("C-p", "C-q")
        tmux.until("detached")
        check_sane(tmux)
        tmux("clear-history")
        tmux.type(f"clear; aiovmm attach {socket}\r")
        tmux.until("one-42")  # the history
        tmux.type("poweroff\r")
        tmux.until("guest ended")
        check_sane(tmux)
        assert monitor.wait(30) == 0, log.read_text()
    finally:
        monitor.kill()
        monitor.wait()


def test_run_on_the_terminal_itself(guests: Guests, tmux: SlowTmux) -> None:
    tmux.type(command_line(guests.config(), "--serial tty") + ENDED)
    tmux.until("guest:/root#")
    tmux.type("echo two-$((40+2))\r")
    tmux.until("two-42")
    tmux.keys("C-p", "C-q")
    tmux.until("a: attach again")
    tmux.type("a\r")
    tmux.until("two-42", times=2)
    tmux.type("poweroff\r")
    tmux.until("status=0")
    check_sane(tmux)


def test_a_session_on_hvc0_follows_the_windows_size(guests: Guests, tmux: SlowTmux) -> None:
    options = ("--serial null", "--console tty", "--stop-timeout 1")
    tmux.type(command_line(guests.config(), *options, cmdline=HVC0) + ENDED)
    tmux.until("guest:/root#")
    tmux.type("clear; stty size\r")
    tmux.until("30 100")
    tmux("resize-window", "-x", "90", "-y", "25")
    tmux.type("until [ \"$(stty size)\" = '25 90' ]; do sleep 0.1; done; echo now-$(stty size)\r")
    tmux.until("now-25 90")
    tmux.type("trap 'echo interrupted-$((40+2))' INT; echo star''ted; sleep 1000\r")
    tmux.until("started")
    tmux.keys("C-c")
    tmux.until("interrupted-42")
    tmux.keys("C-p", "C-q")
    tmux.until("a: attach again")
    tmux("clear-history")
    tmux.type("a\r")
    tmux.until("interrupted-42", times=2)  # on the screen still, and in the history
    os.kill(tmux.child(), signal.SIGTERM)
    tmux.until("status=")
    check_sane(tmux)


def test_a_monitor_that_dies_of_sigkill_leaves_a_terminal_that_stty_sane_restores(
    guests: Guests, tmux: SlowTmux
) -> None:
    tmux.type(command_line(guests.config(), "--serial null", "--console tty", cmdline=HVC0) + ENDED)
    tmux.until("guest:/root#")
    monitor = tmux.child()
    os.kill(monitor, signal.SIGKILL)
    tmux.until("status=137")
    assert not Path(f"/proc/{monitor}").exists(), "and with it the guest"
    tmux.type("stty sane; echo restored")
    tmux.keys("C-j")
    tmux.until("restored")  # once: what is typed is not echoed until then
    check_sane(tmux)


def test_a_killed_monitor_leaves_the_terminal_sane(guests: Guests, tmux: SlowTmux) -> None:
    tmux.type(command_line(guests.config(), "--serial tty --stop-timeout 1") + ENDED)
    tmux.until("guest:/root#")
    os.kill(tmux.child(), signal.SIGTERM)
    tmux.until("status=")
    check_sane(tmux)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(
    ("places", "cmdline"),
    [
        ("--serial tty --console off", None),
        ("--serial null --console tty", HVC0),
        ("--serial null --console tty", LOUD),
    ],
    ids=["ttyS0", "hvc0", "hvc0 with messages"],
)
def test_what_a_pipe_gives_before_the_guest_has_booted_is_not_lost(
    guests: Guests, release: str, places: str, cmdline: str | None
) -> None:
    command = command_line(guests.config(release), places, cmdline=cmdline)
    words = "".join(f"echo word-$(({n}+1))\n" for n in range(20)) + "poweroff -f\n"
    done = subprocess.run(["sh", "-c", f"exec {command}"], input=words.encode(), capture_output=True, timeout=2 * BOOT)
    print(done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
    assert [n for n in range(1, 21) if f"word-{n}\r\n".encode() not in done.stdout] == []
    assert done.returncode == 0
