"""`aiovmm run --rootfs` with the real agent, beside a machine on this host's KVM, which boots no Linux."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.conftest import Guest, guest
from tests.everybodys import everybodys
from tests.limits import HANGS
from tests.vm.conftest import emulated
from tests.vm.guest import config

__all__ = ["emulated", "guest"]

pytestmark = pytest.mark.kvm

PROGRAM = """
import asyncio, os, sys
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
import aiovmm.sandboxes
from aiovmm import VM, PayloadConfig
from aiovmm.agent import Agent
from aiovmm.agent.place import UnixPlace
from aiovmm.cli import main
from aiovmm.rootfs.image import ImageConfig
from tests.vm.guest import config

GUEST = config("hx")  # before it is somebody else, who may not read this tree

class WithAgent(VM):
    image = SimpleNamespace(config=ImageConfig({"A": "image's"}, cmd=("echo", "the image's own")))
    def _make_agent(self):
        return Agent(UnixPlace(place), patience=10)

@asynccontextmanager
async def sandbox(root, **settings):
    if "WHO" in os.environ:
        print("ids:", *os.getresuid(), *os.getresgid(), os.getgroups(), flush=True)
    changes = {"payload": PayloadConfig(Path(os.environ["KERNEL"]), None, "hx")} if "KERNEL" in os.environ else {}
    async with WithAgent(replace(GUEST, **changes), terminal=False) as vm:
        await vm.start()
        vm.published = {43210 + (host == 0): guest for host, guest in settings["publish"]}
        settings["on_start"](vm)
        if "NEVER" in os.environ:
            print("boots", flush=True)
            await asyncio.sleep(1000)
        yield vm

aiovmm.sandboxes.sandbox = sandbox
place = Path(sys.argv[1])
sys.argv[1:] = ["run", "--rootfs", "/root", *sys.argv[2:]]
main()
"""
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _built(emulated: bool) -> None:
    config("hx")  # it is assembled once, and not by each program


@pytest.fixture
def runtime() -> Iterator[Path]:
    """Where sockets go, whose paths may not be as long as those of pytest's own directories."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as path:
        yield Path(path)


def start(
    guest: Guest, runtime: Path, *words: str, stdin: int | None = None, stdout: int | None = None, **variables: str
) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime), **variables}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(guest.path), *words],
        stdin=pipe if stdin is None else stdin,
        stdout=pipe if stdout is None else stdout,
        stderr=pipe,
        env=environment,
        cwd=ROOT,
    )


def run(guest: Guest, runtime: Path, *words: str, data: bytes = b"") -> tuple[int, bytes, bytes]:
    process = start(guest, runtime, *words)
    out, errors = process.communicate(data, timeout=HANGS)
    return process.returncode, out, errors


def test_streams_and_status_are_the_commands_own(guest: Guest, runtime: Path) -> None:
    data = os.urandom(300_000)
    done = run(guest, runtime, "-e", "B=7", "--", "sh", "-c", "cat; echo $B >&2; exit 7", data=data)
    assert done == (7, data, b"7\n")


def test_ends_that_are_no_status(guest: Guest, runtime: Path) -> None:
    assert run(guest, runtime, "--", "sh", "-c", "kill -9 $$")[0] == 128 + 9
    code, out, errors = run(guest, runtime, "--", "no-such-program")
    assert (code, out) == (127, b"")
    assert b"no-such-program" in errors


def test_without_a_command_it_is_the_images_own(guest: Guest, runtime: Path) -> None:
    assert run(guest, runtime)[:2] == (0, b"the image's own\n")


def test_it_is_listed_while_it_runs(guest: Guest, runtime: Path) -> None:
    process = start(guest, runtime, "--name", "box", "--", "sh", "-c", "echo ready; cat")
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    ps = [sys.executable, "-m", "aiovmm", "ps", "--json"]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime)}
    told = json.loads(subprocess.check_output(ps, env=environment))
    assert (told["name"], told["pid"], told["command"]) == ("box", process.pid, "sh -c echo ready; cat")
    process.communicate(b"", timeout=HANGS)
    assert process.returncode == 0
    assert subprocess.check_output(ps, env=environment) == b""


def test_it_is_listed_while_it_boots_and_its_console_followed(guest: Guest, runtime: Path) -> None:
    process = start(guest, runtime, "--name", "box", "--publish", "0:80", "--", "true", NEVER="1")
    assert process.stdout is not None
    assert process.stdout.readline() == b"boots\n"
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime)}
    command = [sys.executable, "-m", "aiovmm"]
    deadline = time.monotonic() + HANGS
    while (told := json.loads(subprocess.check_output([*command, "ps", "--json"], env=environment)))[
        "state"
    ] != "booting":
        assert time.monotonic() < deadline, told  # a thread writes it
    assert (told["name"], told["state"], told["ports"], told["memory"]) == ("box", "booting", [[43211, 80]], 4 << 20)
    following = subprocess.Popen([*command, "logs", "-f", "box"], stdout=subprocess.PIPE, env=environment)
    assert following.stdout is not None
    assert following.stdout.read(5) == b"hello"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=HANGS)
    assert errors == b"aiovmm: port 43211 of 127.0.0.1 is the guest's port 80\n"
    assert following.communicate(timeout=HANGS)[0] == b""
    assert following.returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_the_hosts_user_is_one_thing_and_the_guests_another(guest: Guest, runtime: Path) -> None:
    """/dev/kvm is root's here, and what is kept of the guest the user's."""
    runtime.chmod(0o777)
    (runtime / "cache").mkdir()
    (runtime / "aiovmm").mkdir(mode=0o700)
    os.chown(runtime / "aiovmm", 4321, 8765)
    agent = runtime / "agent"  # where others than root get to
    os.link(guest.path, agent)
    agent.chmod(0o777)
    words = ("--host-user", "4321:8765", "--", "echo", "hello")
    with everybodys(config("hx").payload.kernel) as kernel:
        process = start(Guest(guest.process, agent), runtime, *words, WHO="1", KERNEL=str(kernel))
        out, errors = process.communicate(b"", timeout=HANGS)
    assert (process.returncode, errors) == (0, b""), errors
    assert out == b"ids: 4321 4321 4321 8765 8765 8765 []\nhello\n"


def test_a_terminal_that_is_none_is_told_before_it_boots(guest: Guest, runtime: Path) -> None:
    process = start(guest, runtime, "--tty", "--", "true", NEVER="1")
    out, errors = process.communicate(b"", timeout=HANGS)
    assert (process.returncode, out, errors.count(b"\n")) == (2, b"", 1)
    assert b"--tty: standard input and output are not a terminal" in errors


@pytest.mark.parametrize(
    ("options", "shown"), [((), b"\x1b[6n\x1b[31mred"), (("--filter",), b"\x1b[31mred")], ids=["all", "filtered"]
)
def test_its_terminal_may_be_shown_what_draws_alone(
    guest: Guest, runtime: Path, options: tuple[str, ...], shown: bytes
) -> None:
    master, slave = pty.openpty()
    words = ["--tty", *options, "--", "sh", "-c", r"printf '\033[6n\033[31mred'"]
    process = start(guest, runtime, *words, stdin=slave, stdout=slave)
    seen = b""
    while b"red" not in seen:
        seen += os.read(master, 4096)
    assert seen.partition(b"red")[0] + b"red" == shown  # behind it the terminal may have been set back already
    assert process.wait(HANGS) == 0
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_it_boots(guest: Guest, runtime: Path, number: signal.Signals) -> None:
    process = start(guest, runtime, "--", "true", NEVER="1")
    assert process.stdout is not None
    assert process.stdout.readline() == b"boots\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=HANGS)
    assert (process.returncode, errors) == (128 + number, b"")
    assert list((runtime / "aiovmm/guests").iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ("--volume", "a:/b"),
        ("--publish", "1:2"),
        ("--network",),
        ("--allow", "x.org"),
        ("-e", "A=b"),
        ("--filter",),
        ("--", "ls"),
    ],
)
def test_what_goes_with_a_root_alone_is_refused_without_one(words: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-m", "aiovmm", "run", "--kernel", "k", *words], capture_output=True)
    assert done.returncode == 2
    assert b"--rootfs" in done.stderr


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--disk", "path=x"), b"--disk: does not go with --rootfs"),
        (("--publish", "x:80"), b"HOST_PORT:GUEST_PORT"),
        (("--publish", "80:0"), b"HOST_PORT:GUEST_PORT"),
        (("-e", "A"), b"NAME=VALUE"),
        (("--host-user", "root"), b"--host-user: root is root's"),
        (("--host-user", "no-such"), b"--host-user: there is no user"),
        (("--allow", "10.0.0.1/8"), b"has host bits set"),
        (("--allow", "http://x"), b"is no n"),
    ],
)
def test_wrong_usage_is_named(words: tuple[str, ...], reason: bytes) -> None:
    done = subprocess.run([sys.executable, "-m", "aiovmm", "run", "--rootfs", "/", *words], capture_output=True)
    assert done.returncode == 2
    assert reason in done.stderr
