"""Every option that something is written to, on every kind of place: it works, or is refused in one line; nobody waits."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.cli.test_run import DEADLINE

FILES = {
    "serial": "--serial=file={}",
    "console": "--console=file={}",
    "debug": "--debug-console=file={}",
    "events": "--event-monitor=path={}",
    "json": "--json={}",
    "log": "--log-file={}",
}
"""What takes a file and streams."""
WRITTEN = {
    "serial": b"hello\n",
    "console": b"",
    "debug": b"",
    "events": b'"event": "booted"',
    "json": b'"event": "started"',
    "log": b"started",
}
"""Of what each writes of a guest that says hello and powers off."""


def arguments(option: str, place: str) -> list[str]:
    return ["--cmdline", "ho", "-vv", FILES[option].format(place)]


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


@pytest.fixture
def full_pipe() -> Iterator[int]:
    """Its writing end, into which nothing goes; nobody reads."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, bytes(4096))
    except BlockingIOError:
        os.set_blocking(writing, True)
    yield writing
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("option", FILES)
def test_a_fifo_that_nobody_reads(option: str, aiovmm: Command, guest: list[str], fifo: Path) -> None:
    done = aiovmm.run(*guest, *arguments(option, str(fifo)))
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("option", FILES)
def test_a_fifo_that_is_read(option: str, aiovmm: Command, guest: list[str], fifo: Path) -> None:
    with subprocess.Popen(["cat", fifo], stdout=subprocess.PIPE) as reader:
        done = aiovmm.run(*guest, *arguments(option, str(fifo)))
        said = reader.communicate(timeout=DEADLINE)[0]
    assert done.returncode == 0, done.stderr
    assert WRITTEN[option] in said


@pytest.mark.parametrize("option", FILES)
def test_standard_output_that_is_a_pipe(option: str, aiovmm: Command, guest: list[str]) -> None:
    done = aiovmm.run(*guest, *arguments(option, "/dev/stdout"))
    assert done.returncode == 0, done.stderr
    assert WRITTEN[option] in done.stdout


@pytest.mark.parametrize("option", FILES)
def test_a_pipe_that_is_full(option: str, aiovmm: Command, guest: list[str], full_pipe: int) -> None:
    process = aiovmm.start(*guest, *arguments(option, f"/dev/fd/{full_pipe}"), pass_fds=[full_pipe])
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, err
    assert b"Traceback" not in err


@pytest.mark.parametrize("option", ["--event-monitor=fd={}", "--json={}"])
def test_a_descriptor_of_a_pipe_that_is_full(option: str, aiovmm: Command, guest: list[str], full_pipe: int) -> None:
    process = aiovmm.start(*guest, "--cmdline", "ho", option.format(full_pipe), pass_fds=[full_pipe])
    out, _ = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out) == (0, b"hello\n")


def test_standard_error_that_is_full(aiovmm: Command, guest: list[str], full_pipe: int) -> None:
    """Of a launcher that does not read it."""
    process = aiovmm.start(*guest, "--cmdline", "ho", "-vv", "--json", stderr=full_pipe)
    out, _ = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out) == (0, b"hello\n")


@pytest.mark.parametrize("option", FILES)
def test_what_cannot_be_written_to_is_refused_in_a_line(
    option: str, aiovmm: Command, guest: list[str], tmp_path: Path
) -> None:
    for place in (str(tmp_path), "/dev/fd/77", str(tmp_path / "none" / "x"), "/dev/loop-control/x"):
        done = aiovmm.run(*guest, "--cmdline", "ho", FILES[option].format(place))
        assert done.returncode in (1, 2)
        assert done.stderr.startswith(b"aiovmm: ")
        assert done.stderr.count(b"\n") == 1
        assert place.encode() in done.stderr


@pytest.mark.parametrize("option", FILES)
def test_a_device_that_is_full(option: str, aiovmm: Command, guest: list[str]) -> None:
    """The guest runs to its end, and it is said that what it prints is lost."""
    done = aiovmm.run(*guest, *arguments(option, "/dev/full")[:2], FILES[option].format("/dev/full"))
    assert b"Traceback" not in done.stderr
    if WRITTEN[option] and option != "log":  # there is nothing to log
        assert b"No space left on device" in done.stderr


@pytest.mark.parametrize("to_file", [False, True])
def test_a_remark_on_an_option_goes_where_the_log_does(
    to_file: bool, aiovmm: Command, guest: list[str], tmp_path: Path
) -> None:
    """It is made before there is a log; and it quotes a name."""
    (tmp_path / "\x1b[2Jempty").touch()
    log = ["--log-file", "log"] if to_file else []
    options = ["--cmdline", "o", "--serial", "null", "--initramfs", "\x1b[2Jempty", "--cpus", "boot=1,boot=2"]
    done = aiovmm.run(*guest, *options, *log)
    assert done.returncode == 0
    told = ((tmp_path / "log").read_bytes() if to_file else done.stderr).splitlines()
    assert (done.stderr == b"") is to_file
    assert [b"WARN" in line.upper() for line in told] == [True, True]
    assert told[0].endswith(rb"--initramfs: \x1b[2Jempty is empty: the guest has none")
    assert told[1].endswith(b"cpus.boot: is given twice, and the last holds: '2'")
