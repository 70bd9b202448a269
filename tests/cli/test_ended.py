"""Commands that end in the middle, by a signal or for want of room: a line, and nothing that they had begun."""

from __future__ import annotations

import os
import resource
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from aiovmm.cli.image import _write
from aiovmm.errors import HostError
from tests.cli.conftest import Command
from tests.cli.test_run import DEADLINE, wait_for

_PROGRAMS = {
    "apt-cache": "echo '  Candidate: 1'",
    "apt-get": 'touch half.deb; echo $$ >"$BEGUN.new"; mv "$BEGUN.new" "$BEGUN"; exec sleep 1000',
}


@pytest.fixture
def slow(tmp_path: Path) -> dict[str, str]:
    """An environment whose apt never ends."""
    for name, text in _PROGRAMS.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "BEGUN": str(tmp_path / "begun")}
    return {**os.environ, **cache, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}


def until_ended(pid: int) -> None:
    """Nobody's child: whoever is the first process here may take some time to look."""
    deadline = time.monotonic() + DEADLINE
    with suppress(FileNotFoundError, ProcessLookupError):
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 1, b"aiovmm: interrupted\n"),
        (signal.SIGTERM, -signal.SIGTERM, b"aiovmm: ended by SIGTERM\n"),
        (signal.SIGHUP, -signal.SIGHUP, b"aiovmm: ended by SIGHUP\n"),
    ],
)
def test_what_it_had_begun_is_undone(
    number: signal.Signals, code: int, said: bytes, aiovmm: Command, slow: dict[str, str], tmp_path: Path
) -> None:
    process = aiovmm.start("image", "kernel", "--debian", env=slow)
    wait_for((tmp_path / "begun").exists, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out, err) == (code, b"", said)
    assert not list((tmp_path / "cache").rglob("*.deb"))
    until_ended(int((tmp_path / "begun").read_text()))


def test_who_is_to_outlive_its_terminal_is_not_ended(aiovmm: Command, slow: dict[str, str], tmp_path: Path) -> None:
    def nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = aiovmm.start("image", "kernel", "--debian", env=slow, preexec_fn=nohup)
    wait_for((tmp_path / "begun").exists, process)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE) == -signal.SIGTERM


def test_an_initramfs_that_has_no_room_leaves_no_half_and_the_link_that_led_there(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(HostError, match="write the initramfs"):
            _write(link, bytes(8192))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert link.is_symlink()
    assert not target.exists()
