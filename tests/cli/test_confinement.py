"""`aiovmm run` gives up rights of its own, and everything that it does goes on working (so do all other tests of the command)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from aiovmm.native import lib
from tests.cli.conftest import Command
from tests.confine.tried import FOREIGN_RINGS
from tests.limits import HANGS

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, or unprivileged user namespaces")
needs_landlock = pytest.mark.skipif(lib.avmm_landlock_version() < 0, reason="this kernel has no Landlock")

PROGRAM = f"""
{FOREIGN_RINGS}
import os, socket, sys
from aiovmm.cli import main
from aiovmm.vm import VM

start = VM.start

def tried(what, call):
    try:
        call()
    except OSError as exc:
        print(what + ":", os.strerror(exc.errno), file=sys.stderr)
    else:
        print(what + ": done", file=sys.stderr)

async def tries(vm):
    tried("execute", lambda: os.execv("/bin/true", ["true"]))
    tried("network", lambda: socket.socket(socket.AF_INET))
    tried("file", lambda: open("/etc/shadow").read())
    tried("module", lambda: __import__("colorsys"))
    print("rings:", *foreign_rings(), file=sys.stderr)
    await start(vm)

VM.start = tries
main()
"""


def devices(place: Path) -> list[str]:
    """Of every kind that needs nobody else."""
    (place / "disk").write_bytes(bytes(1 << 20))
    (place / "pmem").write_bytes(bytes(2 << 20))
    return [
        *("--disk", f"path={place / 'disk'},image_type=raw", "--pmem", f"file={place / 'pmem'}"),
        *("--vsock", f"cid=3,socket={place / 'vsock'}", "--balloon", "size=0", "--console", f"file={place / 'hvc0'}"),
    ]


@pytest.mark.parametrize(
    ("more", "file"),
    [
        ([], "done"),
        pytest.param(["--landlock"], os.strerror(13), marks=needs_landlock),
        pytest.param(["--namespaces"], os.strerror(2), marks=needs_root),
        pytest.param(["--namespaces", "--landlock"], os.strerror(2), marks=[needs_root, needs_landlock]),
    ],
    ids=["calls", "paths", "mounts", "both"],
)
def test_a_guest_runs_and_reboots_in_a_process_that_can_do_little(
    more: list[str], file: str, aiovmm: Command, guest: list[str], tmp_path: Path
) -> None:
    command = [*guest, "--cmdline", "heo", *devices(tmp_path), *more]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *command], input=b"q", capture_output=True, timeout=60, cwd=tmp_path
    )
    assert "rings:" in done.stderr.decode().splitlines()
    told = dict(line.split(": ") for line in done.stderr.decode().splitlines() if line.count(": ") == 1)
    assert done.stdout.startswith(b"hello"), done.stderr
    assert done.returncode == 0
    refused = os.strerror(1)
    assert told["execute"] == told["network"] == refused
    assert told["file"] == file
    assert told["module"] == "done"


@pytest.mark.parametrize(
    ("option", "refused"),
    [
        pytest.param("--landlock", os.strerror(13), marks=needs_landlock),
        pytest.param("--namespaces", os.strerror(2), marks=needs_root),
    ],
)
@pytest.mark.parametrize("there", [True, False])
def test_beside_an_output_file_nothing_is_there(
    option: str, refused: str, there: bool, aiovmm: Command, guest: list[str], tmp_path: Path
) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "other").write_text("of another guest")
    if there:
        (logs / "serial").write_text("of the last time")
    program = PROGRAM.replace("/etc/shadow", str(logs / "other"))
    command = [*guest, "--cmdline", "ho", "--serial", f"file={logs / 'serial'}", option]
    called = [sys.executable, "-c", program, *command]  # so that modules are looked for where it is called, too
    done = subprocess.run(called, capture_output=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"file: {refused}\n" in done.stderr.decode()
    assert (logs / "serial").read_bytes() == b"hello\n"
    assert (logs / "serial").stat().st_mode & 0o777 == (0o644 if there else 0o600)


@pytest.mark.parametrize(
    "option", [pytest.param("--landlock", marks=needs_landlock), pytest.param("--namespaces", marks=needs_root)]
)
@pytest.mark.parametrize("place", ["/dev/stdout", "/dev/fd/1", "fifo"])
def test_output_that_is_no_file(option: str, place: str, aiovmm: Command, guest: list[str], tmp_path: Path) -> None:
    """A pipe that is found by a descriptor has no path to be granted, and needs none."""
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    done = aiovmm.run(*guest, "--cmdline", "ho", "--serial", f"file={tmp_path / place}", option)
    said = os.read(reader, 100) if place == "fifo" else done.stdout
    os.close(reader)
    assert (done.returncode, said) == (0, b"hello\n"), done.stderr


@pytest.mark.parametrize(
    "option", [pytest.param("--landlock", marks=needs_landlock), pytest.param("--namespaces", marks=needs_root)]
)
def test_what_is_written_to_files_before_is_written_by_no_thread(option: str, guest: list[str], tmp_path: Path) -> None:
    places = ("--event-monitor", "path=monitor", "--log-file", "log", "--json", "json", "-vv")
    command = [sys.executable, "-m", "aiovmm", *guest[:1], *places, *guest[1:], "--cmdline", "ho", option]
    with open(tmp_path / "stderr", "wb") as stderr:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, b"hello\n"), (tmp_path / "stderr").read_bytes()
    monitor = (tmp_path / "monitor").read_text()
    assert '"starting"' in monitor
    assert monitor.rstrip().endswith("}")
    assert '"shutdown"' in monitor
    assert (tmp_path / "json").read_bytes()


@needs_landlock
def test_an_output_file_that_cannot_be_made_is_said(aiovmm: Command, guest: list[str]) -> None:
    done = aiovmm.run(*guest, "--cmdline", "u", "--serial", "file=/none/serial", "--landlock")
    assert done.returncode == 1
    assert b"/none/serial" in done.stderr
    assert b"No such file" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_it_can_be_left_out(aiovmm: Command, guest: list[str], tmp_path: Path) -> None:
    command = [*guest, "--cmdline", "heo", "--seccomp", "false"]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *command], input=b"q", capture_output=True, timeout=60)
    assert (done.stderr, done.stdout) == (b"", b"")  # for it has become /bin/true


@needs_landlock
def test_others_may_ask_one_that_gave_up_paths(aiovmm: Command, guest: list[str], tmp_path: Path) -> None:
    places = ("--control-socket", "control", "--json", "events")
    process = aiovmm.start(*guest, "--cmdline", "heo", "--landlock", *places)
    assert process.stdout is not None
    assert process.stdout.read(6) == b"hello\n"
    assert (tmp_path / "control").is_socket()
    _, error = process.communicate(b"q", timeout=HANGS)
    assert (process.returncode, error) == (0, b"")
    assert not os.path.lexists(tmp_path / "control")


@needs_landlock
def test_a_rule_gives_a_path_more(aiovmm: Command, guest: list[str]) -> None:
    command = [*guest, "--cmdline", "heo", "--landlock", "--landlock-rules", "path=/etc,access=r"]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *command], input=b"q", capture_output=True, timeout=60)
    assert b"file: done" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--landlock-rules", "path=/etc,access=r"], "say --landlock, too, or --namespaces"),
        pytest.param(["--namespaces", "--net", "passt=on"], "passt needs namespaces", marks=needs_root),
        (["--landlock", "--landlock-rules", "path=/etc,access=x"], "'x' is no access"),
        (["--landlock", "--landlock-rules", "path=/etc"], "access"),
        (["--seccomp", "perhaps"], "perhaps"),
        pytest.param(
            ["--landlock", "--landlock-rules", "path=/none,access=r"], "there is no /none", marks=needs_landlock
        ),
        pytest.param(["--landlock", "--net", "passt=on"], "passt needs namespaces", marks=needs_landlock),
    ],
)
def test_what_cannot_be_is_said(arguments: list[str], said: str, aiovmm: Command, guest: list[str]) -> None:
    done = aiovmm.run(*guest, "--cmdline", "u", *arguments)
    assert done.returncode == 2
    assert said in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


@needs_landlock
@pytest.mark.skipif(not shutil.which("qemu-storage-daemon"), reason="qemu-utils is not installed")
@pytest.mark.parametrize("overlay", [False, True])
def test_what_images_are_based_on_may_be_read(
    overlay: bool, aiovmm: Command, guest: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The names stand in the images alone: of qcow2 ones, and of overlays. They are not where the command is started."""
    tmp_path = tmp_path_factory.mktemp("images")
    for name in ("images", "middle", "bottom"):
        (tmp_path / name).mkdir()
    (tmp_path / "bottom/raw").write_bytes(bytes(1 << 20))
    top, middle = tmp_path / "images/top", tmp_path / "middle/one"
    if overlay:
        for over, base in ((middle, tmp_path / "bottom/raw"), (top, middle)):
            make = ["--disk", f"path={base},overlay={over},backing_files=on"]
            assert aiovmm.run(*guest, "--cmdline", "ho", *make).returncode == 0
    else:
        for file, named, form in ((middle, "../bottom/raw", "raw"), (top, "../middle/one", "qcow2")):
            create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", named, "-F", form, str(file)]
            subprocess.run(create, check=True)
    disk = f"path={top},overlay={tmp_path / 'images/new'}" if overlay else f"path={top}"
    done = aiovmm.run(*guest, "--cmdline", "ho", "--landlock", "--disk", f"{disk},backing_files=on")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not shutil.which("qemu-storage-daemon"), reason="qemu-utils is not installed")
@pytest.mark.parametrize("landlock", [False, pytest.param(True, marks=needs_landlock)])
def test_disks_with_files_and_programs_of_their_own(
    landlock: bool, aiovmm: Command, guest: list[str], tmp_path: Path
) -> None:
    """An overlay that is made, and one that QEMU's storage daemon has, which is ended though nobody may be killed."""
    (tmp_path / "base").write_bytes(bytes(1 << 20))
    image = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "1M"], check=True)
    disks = ["--disk", f"path={tmp_path / 'base'},overlay={tmp_path / 'top'}", "--disk", f"path={image}"]
    command = [*guest, "--cmdline", "heo", *disks, *(["--landlock"] if landlock else [])]
    with tempfile.TemporaryDirectory(prefix="aiovmm-") as place:  # short, for sockets
        environment = {**os.environ, "XDG_RUNTIME_DIR": place}
        done = subprocess.run(
            [sys.executable, "-m", "aiovmm", *command], input=b"q", capture_output=True, timeout=60, env=environment
        )
        assert (done.stdout[:5], done.returncode) == (b"hello", 0), done.stderr
        assert not landlock or os.listdir(Path(place) / "aiovmm/sockets") == []
    assert (tmp_path / "top").exists()
    subprocess.run(["qemu-img", "check", str(image)], check=True, capture_output=True)  # nobody has it locked
