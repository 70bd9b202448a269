"""examples/sandbox.py and examples/ci_runner.py as users run them, with an agent in the place of a guest, and how they end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.agent.conftest import Guest, gone, guest

__all__ = ["guest"]

ROOT = Path(__file__).parents[2]
PROGRAM = """
import runpy, sys
from contextlib import asynccontextmanager
from pathlib import Path
import aiovmm
from aiovmm.agent import Agent
from aiovmm.agent.place import UnixPlace
from aiovmm.machine.commands import Commands

class Box(Commands):
    def _make_agent(self):
        return Agent(UnixPlace(place), patience=10)

@asynccontextmanager
async def sandbox(image, **settings):
    if settings["memory"] == "none":
        raise aiovmm.BootTimeout("agent", 1.0, b"", "nobody listens")
    box = Box()
    print("booted", file=sys.stderr, flush=True)
    try:
        yield box
    finally:
        box.agent.close()
        print("left", file=sys.stderr, flush=True)

aiovmm.sandbox = sandbox
place, name = Path(sys.argv[1]), sys.argv[2]
sys.argv[1:] = sys.argv[3:]
runpy.run_module(name, run_name="__main__", alter_sys=True)
"""


def start(guest: Guest, *words: str | Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PROGRAM, str(guest.path), *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)


def run(guest: Guest, *words: str | Path) -> tuple[int, str, str]:
    process = start(guest, *words)
    out, errors = process.communicate(timeout=60)
    assert b"Traceback" not in errors
    return process.returncode, out.decode(), errors.decode()


def test_commands_in_sandboxes(guest: Guest, tmp_path: Path) -> None:
    words = ("examples.sandbox", tmp_path, "--timeout", "20")
    assert run(guest, *words, "echo a; echo b", "exit 0")[:2] == (
        0,
        "echo a; echo b: status 0: b\nexit 0: status 0: \n",
    )
    assert run(guest, *words, "echo a", "exit 3")[:2] == (1, "echo a: status 0: a\nexit 3: status 3: \n")
    late = run(guest, "examples.sandbox", tmp_path, "--timeout", "0.5", "echo so far; exec sleep 1000")
    assert late[:2] == (1, "echo so far; exec sleep 1000: took too long: so far\n")
    code, out, _ = run(guest, *words, "--memory", "none", "true")
    assert (code, out.startswith("true: failed: ")) == (1, True)


def test_a_source_tree_goes_in_and_artifacts_come_out(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/input").write_text("data")
    into: list[str | Path] = ["--source", tmp_path / "src", "--into", tmp_path / "out"]
    into += ["--artifacts", "a/report", "--artifacts", "none"]
    command = "setsid sleep 65 & echo $! > pid; cat input; mkdir a; echo report > a/report; echo errors >&2; exit 7"
    work = str(tmp_path / "guest")  # which here is this machine
    code, out, errors = run(guest, "examples.ci_runner", tmp_path, command, "--work", work, *into)
    assert (code, out) == (7, "data")
    assert "errors\n" in errors
    assert "there is no none" in errors
    assert (tmp_path / "out/a/report").read_text() == "report\n"
    assert not (tmp_path / "src/a").exists()
    os.kill(int((tmp_path / "guest/pid").read_text()), signal.SIGKILL)  # what it has left running lives


def test_what_goes_wrong_is_one_sentence(guest: Guest, tmp_path: Path) -> None:
    for name in ("examples.sandbox", "examples.ci_runner", "examples.service"):
        code, out, errors = run(guest, name, tmp_path / "none", *(["true"] if name != "examples.service" else []))
        assert (code, out, errors.count("\n")) == (1, "", 1)
        assert "none" in errors
    code, out, errors = run(
        guest, "examples.ci_runner", tmp_path, "true", "--memory", "none", "--work", str(tmp_path / "x")
    )
    assert (code, out) == (1, "")
    assert "nobody listens" in errors
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, errors = run(guest, "examples.service", tmp_path, "--port", str(taken.getsockname()[1]))
    assert code == 1
    assert "address already in use" in errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_ends_it_and_its_guest(guest: Guest, tmp_path: Path, number: signal.Signals) -> None:
    seconds = f"97{number:02}"
    process = start(guest, "examples.sandbox", tmp_path, "--timeout", "1000", f"exec sleep {seconds}")
    await guest.busy()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert b"Traceback" not in errors
    assert b"left" in errors
    await gone(f"sleep {seconds}".encode())
