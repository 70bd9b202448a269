"""Volumes: their text, and the daemons that serve them, from their start to every kind of end. Networks: what passt is told."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiovmm import ConfigError, HostError, Network, Volume
from aiovmm.devices.virtio.net.passt import PasstBackend
from aiovmm.runtime.flock import flocked
from aiovmm.sandboxes import guest
from aiovmm.sandboxes.virtiofsd import served
from aiovmm.sandboxes.volumes import socket_folder
from tests.limits import HANGS

VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")
needs_virtiofsd = pytest.mark.skipif(
    not VIRTIOFSD.exists() or os.geteuid() != 0, reason="Debian's virtiofsd is not installed, or we are not root"
)


def daemons(of: int) -> list[int]:
    """Processes of the process `of` that serve a directory; what they begin themselves is not among them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, fields = path.read_text().rsplit(")", 1)
        except OSError:
            continue
        if int(fields.split()[1]) == of and "virtiofsd" in name:
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize(
    ("text", "host", "guest", "readonly"),
    [
        ("src:/src", "src", "/src", False),
        ("/a:b:/c", "/a:b", "/c", False),
        ("src:/src:ro", "src", "/src", True),
        ("src:/src:rw", "src", "/src", False),
    ],
)
def test_what_a_volume_is(text: str, host: str, guest: str, readonly: bool) -> None:
    assert Volume.parse(text) == Volume(Path(host), guest, readonly)


@pytest.mark.parametrize(
    "text", ["", "src", ":/src", "src:src", "src:/", "src:/a b", "src:/a/../b", "src:/a,b", "a:/b:xx"]
)
def test_what_is_no_volume(text: str) -> None:
    with pytest.raises(ConfigError, match="volume"):
        Volume.parse(text)


@needs_virtiofsd
@pytest.mark.parametrize("readonly", [False, True])
async def test_a_daemon_is_there_and_gone_with_its_block(tmp_path: Path, readonly: bool) -> None:
    (tmp_path / "share").mkdir()
    async with served([Volume(tmp_path / "share", "/share", readonly)], tmp_path) as serving:
        (config,) = serving.devices
        assert config.tag == "fs0"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(config.socket))
            async with asyncio.timeout(HANGS):
                while not daemons(os.getpid()):  # noqa: ASYNC110 - another process's doing
                    await asyncio.sleep(0.01)
    assert daemons(os.getpid()) == []
    assert not config.socket.exists()
    (tmp_path / "share/file").touch()  # the read-only mount was the daemon's alone


@needs_virtiofsd
@pytest.mark.parametrize("name", ["a,source=/etc", "a,b", "a\\b,"])
async def test_what_is_served_is_the_directory_whatever_its_name_says(name: str, tmp_path: Path) -> None:
    """It may be a stranger's, as what has been unpacked is: it named another directory of the host's."""
    share = tmp_path / name
    share.mkdir(parents=True)
    async with served([Volume(share, "/share")], tmp_path) as serving:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(serving.devices[0].socket))
            async with asyncio.timeout(HANGS), serving.needed():
                while {root := root_of(pid) for pid in daemons(os.getpid())} <= {"/", ""}:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
    assert root == str(share)


def root_of(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/root")
    except OSError:
        return ""


@needs_virtiofsd
def test_a_daemon_dies_with_whoever_started_it(tmp_path: Path) -> None:
    (tmp_path / "share").mkdir()
    program = (
        "import asyncio, sys; from pathlib import Path\n"
        "from aiovmm.sandboxes.virtiofsd import served; from aiovmm.sandboxes.volumes import Volume\n"
        "async def main():\n"
        "    async with served([Volume(Path(sys.argv[1]), '/x', True)], Path(sys.argv[2])):\n"
        "        print('ready', flush=True); await asyncio.sleep(1000)\n"
        "asyncio.run(main())"
    )
    process = subprocess.Popen([sys.executable, "-c", program, tmp_path / "share", tmp_path], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    deadline = time.monotonic() + HANGS
    while not (found := daemons(process.pid)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in found):
        assert time.monotonic() < deadline
        time.sleep(0.01)


KEEPS = """
import sys
from aiovmm.sandboxes.volumes import socket_folder
with socket_folder() as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_sockets_of_killed_processes_are_swept_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no others, whatever process has which number: one whose number is taken again, or that is in another namespace."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    command, pipe = [sys.executable, "-c", KEEPS], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        theirs = Path(process.stdout.readline().strip())
        with socket_folder() as mine:
            left = mine.with_name(f"{os.getpid()}-0000")
            left.mkdir()
            with socket_folder() as other:
                there = [folder.exists() for folder in (mine, other, theirs, left)]
                assert there == [True, True, True, False]
        process.kill()
        process.wait()
    with socket_folder() as mine:
        assert list(mine.parent.iterdir()) == [mine]
    assert list(mine.parent.iterdir()) == []


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A directory whose name is short: sockets lie two below it, and of a worker's directories some are too long for that."""
    with tempfile.TemporaryDirectory(prefix="aiovmm-") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield


@pytest.mark.usefixtures("runtime")
async def test_a_process_that_was_stopped_while_it_swept_keeps_only_who_waits_for_it(tmp_path: Path) -> None:
    with socket_folder() as mine:
        sweeping = flocked(mine.parent, fcntl.LOCK_EX)
        sweeping.__enter__()
    release = threading.Timer(HANGS, sweeping.__exit__, (None, None, None))  # for a loop that waits for it as well
    release.start()
    entering = asyncio.ensure_future(guest._served([Volume(tmp_path / "none", "/x")]).__aenter__())
    await asyncio.sleep(0.05)
    assert not entering.done()
    assert release.is_alive(), "the loop has waited"
    release.cancel()
    sweeping.__exit__(None, None, None)
    with pytest.raises(HostError, match="a volume is a directory that is there"):
        await entering
    assert list(mine.parent.iterdir()) == []


async def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="a volume is a directory that is there"):
        async with served([Volume(tmp_path / "none", "/x")], tmp_path):
            pass


async def test_no_virtiofsd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_args, **_more: None)
    with pytest.raises(HostError, match="apt-get install virtiofsd"):
        async with served([Volume(tmp_path, "/x")], tmp_path):
            pass


@pytest.mark.skipif(shutil.which("passt") is None, reason="passt is not installed")
@pytest.mark.parametrize("network", [Network(), Network(host=True)], ids=["alone", "with the host"])
def test_passt_serves_the_addresses_that_the_guest_has(network: Network) -> None:
    """It answers who has the gateway's address, which it does once it has read its arguments and taken the guest's."""
    backend = network.device().backend
    assert isinstance(backend, PasstBackend)
    assert ("--no-map-gw" in backend.arguments) is not network.host
    ours, theirs = socket.socketpair()
    with ours:
        command = ["passt", "--foreground", "--quiet", "--fd", str(theirs.fileno()), *backend.arguments]
        process = subprocess.Popen(command, pass_fds=(theirs.fileno(),), stderr=subprocess.PIPE)
        theirs.close()
        mac = bytes.fromhex("2e0000000001")
        guest, gateway = socket.inet_aton("10.0.2.15"), socket.inet_aton("10.0.2.2")
        request = bytes.fromhex("0001080006040001") + mac + guest + bytes(6) + gateway
        frame = (b"\xff" * 6 + mac + b"\x08\x06" + request).ljust(60, b"\0")
        ours.sendall(len(frame).to_bytes(4, "big") + frame)
        ours.settimeout(20)
        while (answer := ours.recv(4096)) and b"\x08\x06" + bytes.fromhex("0001080006040002") not in answer:
            pass
        assert gateway + mac + guest in answer
    process.wait(HANGS)
    process.stderr.close()  # type: ignore[union-attr]


@pytest.fixture
def dying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtiofsd that complains and ends at once."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "virtiofsd"
    says = r"head -c 20000 /dev/zero | tr '\0' x >&2; printf 'cannot \033]0;serve\n' >&2; exit 3"
    program.write_text(f'#!/bin/sh\ncase "$*" in --help) echo --shared-dir --readonly;; *) {says};; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


@pytest.mark.usefixtures("dying")
async def test_what_waits_for_a_daemon_that_has_ended_fails_at_once_with_its_last_words(tmp_path: Path) -> None:
    told = []
    async with asyncio.timeout(HANGS), served([Volume(tmp_path, "/x")], tmp_path) as serving:
        serving.ended = lambda tag, error: told.append((tag, error))
        says = r"virtiofsd for /x has ended with code 3, saying: x+.* characters .*x+cannot \\x1b\]0;serve"
        with pytest.raises(HostError, match=says) as info:
            async with serving.needed():
                await asyncio.sleep(2 * HANGS)
        assert 1900 < len(str(info.value)) <= 2000
        assert told == [("fs0", info.value)]
        with pytest.raises(HostError, match=says):
            async with serving.needed():  # and what is begun then
                await asyncio.sleep(2 * HANGS)
        with pytest.raises(ValueError, match="not its doing"):
            async with serving.needed():
                raise ValueError("not its doing")


@needs_virtiofsd
async def test_an_end_that_is_cancelled_is_an_end(tmp_path: Path) -> None:
    ready = asyncio.Event()

    async def use() -> None:
        (tmp_path / "share").mkdir()
        async with served([Volume(tmp_path / "share", f"/{n}") for n in range(3)], tmp_path):
            ready.set()
            await asyncio.sleep(1000)

    task = asyncio.create_task(use())
    await ready.wait()
    task.cancel()
    async with asyncio.timeout(HANGS):
        while (tmp_path / "fs0").exists():  # noqa: ASYNC110 - until it is being ended
            await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert daemons(os.getpid()) == []
