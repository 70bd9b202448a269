"""Wrong usage, help, doctor, and how fast the command is there."""

from __future__ import annotations

import json
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from aiovmm import doctor
from aiovmm.config.reference import Verdict, rows
from tests.cli.conftest import Command
from tests.limits import HANGS

NOT_THERE = {row.option: row.note for row in rows() if not row.key and row.verdict is Verdict.REFUSED}
WRONG = {
    ("--cpus", "0"): b"cpus",
    ("--cpus", "boot=4,max=2"): b"cpus.max",
    ("--memory", "lots"): b"memory",
    ("--memory", "size=4M,colour=red"): b"colour",
    ("--serial", "nowhere"): b"'nowhere' is not a place for a console",
    ("--gdb", "true"): b"there is no debugger's stub",
    ("--gdb",): b"there is no debugger's stub",
    ("--seccomp=false", "--seccomp=true"): b"--seccomp: is given twice",
    ("--serial", "tty", "--serial", "off"): b"--serial: is given twice",
    ("--cmdline", "x", "--cmdline", "y"): b"--cmdline: is given twice",
    ("--memory", "64M", "--memory=64M"): b"--memory: is given twice",
    ("--kernel", "other"): b"--kernel: is given twice",
    ("--vsock", ""): b"vsock.cid",
    ("--initramfs", ""): b"--initramfs",
    ("--log-file", ""): b"--log-file",
    ("--control-socket", ""): b"--control-socket",
    ("--control-socket", "long" * 40): b"--control-socket",
    ("--disk", "/tmp/x.img"): b"did you mean path=/tmp/x.img?",
    ("--disk", "path=/tmp/x.img,readonly"): b"readonly=...",
    ("--balloon", "size=64T"): b"balloon.size",
    ("--stop-timeout", "nan"): b"--stop-timeout",
    ("--stop-timeout", "-1"): b"--stop-timeout",
    ("--stop-timeout", "inf"): b"--stop-timeout",
    ("--stop-timeout", "soon"): b"--stop-timeout",
    ("--name", ""): b"name",
    ("--json", "--json=events"): b"--json: is given twice",
    ("surplus",): b"surplus",
    ("--cpus",): b"--cpus",
    ("--detach-keys", "alt-f4"): b"alt-f4",
    ("--on-reboot", "maybe"): b"--on-reboot",
    ("--nonsense",): b"--nonsense",
}


@pytest.mark.parametrize(("wrong", "named"), WRONG.items(), ids=lambda v: " ".join(v) if isinstance(v, tuple) else None)
def test_wrong_usage_is_named(wrong: tuple[str, ...], named: bytes, aiovmm: Command, tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"")
    done = aiovmm.run("run", "--kernel", "kernel", *wrong)
    assert done.returncode == 2
    assert named in done.stderr
    assert done.stderr.startswith(b"aiovmm: ")
    assert done.stderr.count(b"\n") == 1
    assert done.stdout == b""


@pytest.mark.parametrize("option", NOT_THERE)
def test_an_option_that_is_not_there_is_refused_by_name_and_with_a_reason(option: str) -> None:
    from click.testing import CliRunner

    from aiovmm.cli.run import command
    from aiovmm.errors import ConfigError

    for given in ([option], [option, "value"], [f"{option}=value"]):
        result = CliRunner().invoke(command, ["--kernel", "x", *given])
        assert isinstance(result.exception, ConfigError), result.output
        assert result.exception.option == option
        assert NOT_THERE[option] in str(result.exception)


OF_OTHERS = {
    ("nonsense",): b"nonsense",
    ("--nonsense",): b"--nonsense",
    ("attach",): b"PATH",
    ("attach", "a", "--detach-keys", "x", "--detach-keys", "y"): b"--detach-keys: is given twice",
    ("image", "nonsense"): b"nonsense",
    ("image", "initramfs"): b"OUTPUT",
    ("image", "kernel", "--arch", "arm64"): b"aarch64",
    ("image", "kernel", "--arch", "aarch64", "--arch", "x86_64"): b"--arch: is given twice",
    ("image", "initramfs", "out", "--run", "a", "--run", "b"): b"--run: is given twice",
    ("image", "initramfs", "out", "--compression", "rar"): b"--compression",
    ("doctor", "well"): b"well",
    ("devices", "--xml"): b"--xml",
}


@pytest.mark.parametrize(
    ("wrong", "named"), OF_OTHERS.items(), ids=lambda v: " ".join(v) if isinstance(v, tuple) else None
)
def test_so_it_is_of_every_command(wrong: tuple[str, ...], named: bytes, aiovmm: Command) -> None:
    done = aiovmm.run(*wrong)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"aiovmm: ")
    assert done.stderr.count(b"\n") == 1
    assert named in done.stderr


def test_no_kernel(aiovmm: Command) -> None:
    done = aiovmm.run("run")
    assert done.returncode == 2
    assert b"--kernel" in done.stderr
    assert b"aiovmm image kernel" in done.stderr


@pytest.mark.parametrize("content", [None, b"", b"#!/bin/sh\n", b"\x7fELF"], ids=["absent", "empty", "script", "stub"])
def test_what_is_not_a_kernel(content: bytes | None, aiovmm: Command, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "kernel").write_bytes(content)
    done = aiovmm.run("run", "--kernel", "kernel")
    assert done.returncode == 2
    assert b"kernel" in done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_help_names_every_command(aiovmm: Command) -> None:
    done = aiovmm.run("--help")
    assert done.returncode == 0
    for name in (b"run", b"attach", b"doctor", b"image"):
        assert name in done.stdout
        assert aiovmm.run(name.decode(), "--help").returncode == 0


def test_version(aiovmm: Command) -> None:
    for words in (["--version"], ["-V"], ["run", "--version"], ["run", "-V"], ["run", "--kernel", "none", "-V"]):
        done = aiovmm.run(*words)
        assert done.stdout.startswith(b"aiovmm ")
        assert (done.returncode, done.stderr) == (0, b"")


def test_doctor(aiovmm: Command) -> None:
    told = aiovmm.run("doctor")
    findings = json.loads(aiovmm.run("doctor", "--json").stdout)
    assert {"question", "verdict", "found", "remedy"} == set(findings[0])
    assert told.returncode == any(f["verdict"] == "missing" for f in findings)
    for finding in findings:
        assert finding["question"].encode() in told.stdout
        assert finding["verdict"] == "ok" or finding["remedy"]


@pytest.mark.parametrize(
    ("release", "verdict"),
    [
        ({"ID": "debian", "VERSION_ID": "12", "PRETTY_NAME": "Debian 12"}, doctor.Verdict.OK),
        ({"ID": "debian", "VERSION_ID": "13", "PRETTY_NAME": "Debian 13"}, doctor.Verdict.OK),
        ({"ID": "debian", "NAME": "Debian sid"}, doctor.Verdict.LIMITED),
        ({"ID": "fedora", "VERSION_ID": "13", "PRETTY_NAME": "Fedora 13"}, doctor.Verdict.LIMITED),
        (None, doctor.Verdict.LIMITED),
    ],
)
def test_doctor_says_where_everything_is_set_up(
    release: dict[str, str] | None, verdict: doctor.Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told() -> dict[str, str]:
        if release is None:
            raise FileNotFoundError("/etc/os-release")
        return release

    monkeypatch.setattr(platform, "freedesktop_os_release", told)
    (finding,) = [one for one in doctor.examine() if one.question == "distribution"]
    assert finding.verdict is verdict
    assert (finding.remedy == "") == (verdict is doctor.Verdict.OK)
    assert release is None or (release.get("PRETTY_NAME") or release["NAME"]) in finding.found


def test_doctor_knows_a_kvm_that_emulates(aiovmm: Command, kvm: bool) -> None:
    findings = {f["question"]: f for f in json.loads(aiovmm.run("doctor", "--json").stdout)}
    assert findings["kvm"]["verdict"] == "ok"
    assert findings["guest code"]["verdict"] == ("limited" if kvm else "ok")


def _seconds(*command: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, timeout=HANGS)
    return time.perf_counter() - began


@pytest.mark.parametrize("command", [("-c", "import aiovmm"), ("-m", "aiovmm", "--help")], ids=" ".join)
def test_how_fast_it_is_there(command: tuple[str, ...], record_property: Callable[[str, object], None]) -> None:
    """Timings go into the report; what is asserted is what makes them: nothing heavy is imported."""
    bare = min(_seconds("-c", "pass") for _ in range(3))
    record_property("ms_above_bare_python", round(1000 * (min(_seconds(*command) for _ in range(3)) - bare), 1))
    code = "import sys, runpy; sys.argv = ['aiovmm', '--help']\n"
    run = "import aiovmm" if command[0] == "-c" else "runpy.run_module('aiovmm', run_name='__main__')"
    code += f"try:\n    {run}\nexcept SystemExit:\n    pass\nprint(*sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=HANGS)
    loaded = set(done.stderr.split())
    assert "aiovmm" in loaded
    assert not loaded & {
        "asyncio",
        "uvloop",
        "structlog",
        "rich",
        "aiovmm.native",
        "aiovmm.vm",
        "lz4",
        "zstandard",
        "ssl",
    }


def test_a_session_imports_what_prints_logs_only_to_print_one() -> None:
    code = (
        "import sys, logging\n"
        "from aiovmm.cli.logs import configure_logging\n"
        "from aiovmm.machine.journal import Journal\n"
        "from aiovmm.lifecycle import EventKind\n"
        "configure_logging(0)\n"
        "journal = Journal('guest')\n"
        "journal.emit(EventKind.STARTED)\n"
        "print(sorted({'structlog', 'rich'} & set(sys.modules)))\n"
        "journal.device_error('disk0', OSError('it broke'))\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=HANGS)
    assert done.stdout == "[]\n"
    for words in ("guest: disk0: device failed", "error='it broke'"):
        assert words in done.stderr


def test_an_error_that_a_guest_causes_imports_nothing() -> None:
    code = (
        "import logging, sys\n"
        "from aiovmm.machine.journal import Journal\n"
        "import aiovmm.vm, aiovmm.errors\n"
        "records = []\n"
        "handler = logging.Handler()\n"
        "handler.emit = records.append\n"
        "logging.getLogger('aiovmm').addHandler(handler)\n"
        "journal = Journal('guest')\n"
        "before = set(sys.modules)\n"
        "journal.device_error('disk0', OSError('it broke'))\n"
        "assert set(sys.modules) == before, set(sys.modules) - before\n"
        "import structlog\n"
        "structlog.contextvars.bind_contextvars(request='r1')\n"
        "journal.device_error('disk1', OSError('so did this'))\n"
        "print([(r.getMessage().split(': ')[:3], r.vm, r.device, r.error, getattr(r, 'request', None)) for r in records])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stderr
    first = (["guest", "disk0", "device failed"], "guest", "disk0", "it broke", None)
    second = (["guest", "disk1", "device failed"], "guest", "disk1", "so did this", "r1")
    assert done.stdout.strip() == str([first, second])


def test_a_start_that_fails_leaves_the_garbage_collector_as_it_was(tmp_path: Path) -> None:
    import gc

    from click.testing import CliRunner

    from aiovmm.cli.run import command

    assert gc.isenabled()
    result = CliRunner().invoke(command, ["--kernel", str(tmp_path / "none")])
    assert result.exit_code != 0
    assert gc.isenabled()


EMPTY = [
    *(("attach", ""), ("exec", "", "true"), ("snapshot", "", "to"), ("snapshot", "from", ""), ("fork", "")),
    *(("snapshot", "a", "b", "--base", ""), ("fork", "a", "--sockets", ""), ("add", "", "--disk", "path=a")),
    *(("remove", "", "a"), ("resize", "", "--cpus", "1"), ("disk", "create", "", "--size", "1M")),
    *(("disk", "create", "a", "--base", ""), ("disk", "info", ""), ("disk", "copy", "a", ""), ("disk", "commit", "")),
    *(("image", "initramfs", ""), ("image", "initramfs", "a", "--modules", ""), ("run", "--rootfs", "", "--", "x")),
]


@pytest.mark.parametrize("words", EMPTY, ids=" ".join)
def test_an_empty_path_is_not_the_working_directory(words: tuple[str, ...], aiovmm: Command, tmp_path: Path) -> None:
    """As a variable makes that nobody has set."""
    (tmp_path / "kernel").write_bytes(b"")
    done = aiovmm.run(*words)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1), done.stderr
    assert b"empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["kernel"]


@pytest.mark.parametrize(
    "words",
    [
        *(
            ("fork", "s", "--stop-timeout"),
            ("exec", "s", "--timeout"),
            ("exec", "s", "--wait"),
            ("cp", "s:/a", "b", "--wait"),
        ),
        *(("add", "s", "--disk", "path=a", "--timeout"), ("remove", "s", "a", "--timeout")),
        ("resize", "s", "--cpus", "2", "--timeout"),
    ],
    ids=" ".join,
)
def test_no_number_is_no_time(words: tuple[str, ...], aiovmm: Command) -> None:
    first, *rest = words
    done = aiovmm.run(first, rest[-1], "nan", *rest[:-1], *(["true"] if first == "exec" else []))
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1), done.stderr
    assert rest[-1].encode() in done.stderr


@pytest.mark.parametrize("name", [".", "/"])
def test_what_is_no_name_of_a_new_disk(name: str, aiovmm: Command) -> None:
    done = aiovmm.run("disk", "create", name, "--size", "1M")
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1), done.stderr
    assert b"choose another name" in done.stderr


LONG = "long" * 40


@pytest.mark.parametrize(
    "words",
    [
        ("attach", LONG),
        ("exec", LONG, "true"),
        ("snapshot", LONG, "s"),
        ("remove", LONG, "a"),
        ("cp", f"{LONG}:/a", "b"),
    ],
    ids=lambda words: words[0],
)
def test_a_socket_whose_path_is_too_long_is_said_to_be(
    words: tuple[str, ...], aiovmm: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is not that at the beginning of its path, which is another's."""
    with socket.socket(socket.AF_UNIX) as other:
        monkeypatch.chdir(tmp_path)
        other.bind(LONG[:107])
        other.listen()
        other.setblocking(False)
        done = aiovmm.run(*words)
        with pytest.raises(BlockingIOError):
            other.accept()
    assert done.stderr.count(b"\n") == 1
    assert b"File name too long" in done.stderr
