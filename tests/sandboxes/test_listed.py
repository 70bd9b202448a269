"""Which guests run: told by their processes' locks, whatever becomes of those; and what their consoles have printed."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from aiovmm import Console, HostError, UsageError
from aiovmm.agent import agent_binary
from aiovmm.cli.commands import cli
from aiovmm.cli.guest_logs import follow
from aiovmm.runtime.flock import flocked
from aiovmm.runtime.worker import Worker
from aiovmm.sandboxes import listed as module
from aiovmm.sandboxes.listed import (
    BOOTING,
    PREPARING,
    RUNNING,
    Defaults,
    Listed,
    defaults_at,
    find_listed,
    listed,
)
from tests.agent.hybrid import HybridFront
from tests.limits import HANGS


@pytest.fixture(autouse=True)
def _runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def test_where_none_can_be_listed_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that cannot be made, as on a read-only file system."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/proc/nowhere")
    assert listed() == []


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_guest_that_could_not_be_looked_at_is_not_swept_away(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    one, opened = Listed("one", "/root", ""), os.open

    def none_left(path: str | Path, *args: Any, **kwargs: Any) -> int:
        if Path(path).name == "lock":
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *args, **kwargs)

    one.tell(RUNNING)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", none_left)
        with pytest.raises(HostError, match="list guests"):
            listed()
    assert [entry.name for entry in listed()] == ["one"]
    one.close()


def test_a_guest_is_listed_until_it_is_closed() -> None:
    one, two = Listed("one", "/root", "make test"), Listed("two", "/root", "")
    assert listed() == []  # they are not there yet
    one.tell(RUNNING, 1 << 28)
    two.tell(RUNNING, 1 << 28)
    assert [(entry.name, entry.pid, entry.memory) for entry in listed()] == [
        ("one", os.getpid(), 1 << 28),
        ("two", os.getpid(), 1 << 28),
    ]
    assert find_listed("one").command == "make test"
    assert find_listed(two.id[:7]).name == "two"
    one.close()
    assert [entry.name for entry in listed()] == ["two"]
    two.close()
    with pytest.raises(UsageError, match=r"no guest that runs is named 'one'"):
        find_listed("one")


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": 5},
        {"name": ["box"]},
        {"state": None},
        {"pid": "1"},
        {"started": "now"},
        {"started": 10**400},
        {"started": float("nan")},
        {"memory": "1G"},
        {"memory": int("9" * 4300)},
        {"ports": 5},
        {"ports": [80]},
        {"ports": [["a", "b"]]},
        {"more": 1},
        "[" * 100000,
    ],
    ids=lambda wrong: str(wrong)[:30],
)
def test_what_one_says_of_itself_keeps_no_other_from_being_listed(wrong: dict[str, Any] | str) -> None:
    good, bad = Listed("tidy", "/", ""), Listed("wild", "/", "")
    good.tell(RUNNING)
    bad.tell(RUNNING)
    about = bad.folder / "about.json"
    about.write_text(wrong if isinstance(wrong, str) else json.dumps({**json.loads(about.read_text()), **wrong}))
    for words in (["ps"], ["ps", "--json"]):
        shown = CliRunner().invoke(cli, words)
        assert shown.exit_code == 0
        assert "tidy" in shown.output
        assert "wild" not in shown.output
    assert find_listed("tidy").folder == str(good.folder)
    good.close()
    bad.close()


def test_its_folder_is_where_it_was_found() -> None:
    good, bad = Listed("good", "/", ""), Listed("bad", "/", "")
    bad.tell(RUNNING)
    about = bad.folder / "about.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "folder": str(good.folder)}))
    assert find_listed("bad").socket == bad.folder / "vsock"
    good.close()
    bad.close()


@pytest.mark.parametrize("name", ["about.json", "lock", "defaults.json"])
def test_nobody_waits_for_a_pipe_in_the_place_of_its_files(name: str) -> None:
    entry = Listed("box", "/", "")
    entry.tell(RUNNING)
    (entry.folder / name).unlink(missing_ok=True)
    os.mkfifo(entry.folder / name)
    assert [found.name for found in listed()] == (["box"] if name == "defaults.json" else [])
    assert defaults_at(entry.folder / "vsock") == Defaults()
    entry.close()


def a_socket(path: Path) -> None:
    folder = os.open(path.parent, os.O_PATH)  # the path of a test's folder may be too long for an address
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)


def a_link(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("put", [a_socket, a_link, Path.mkdir, lambda path: path.touch(0)])
def test_what_is_no_lock_keeps_no_other_from_being_listed(put: Callable[[Path], object]) -> None:
    good, bad = Listed("good", "/", ""), Listed("bad", "/", "")
    good.tell(RUNNING)
    (bad.folder / "lock").unlink()
    put(bad.folder / "lock")
    assert [found.name for found in listed()] == ["good"]
    good.close()
    bad.close()


@pytest.mark.parametrize("put", [a_socket, a_link, Path.mkdir, os.mkfifo])
@pytest.mark.parametrize("name", ["console", "console.old"])
def test_what_is_no_file_of_a_console_is_told_and_not_waited_for(name: str, put: Callable[[Path], object]) -> None:
    entry = Listed("box", "/", "")
    entry.tell(RUNNING)
    entry.console.write_bytes(b"hello")
    (entry.folder / name).unlink(missing_ok=True)
    put(entry.folder / name)
    shown = subprocess.run([sys.executable, "-m", "aiovmm", "logs", "box"], capture_output=True, timeout=HANGS)
    assert (shown.returncode, shown.stdout) == (2, b"")
    assert len(shown.stderr.splitlines()) == 1
    assert f"{entry.folder / name} ".encode() in shown.stderr
    entry.close()


def test_the_file_before_is_shown_in_parts_however_large_it_says_it_is() -> None:
    entry = Listed("box", "/", "")
    entry.console.touch()
    with open(entry.folder / "console.old", "wb") as old:
        old.truncate(1 << 40)
    assert len(next(follow(entry.console, wait=False))) < 1 << 20
    entry.close()


@pytest.mark.parametrize("wrong", [{"env": 5}, {"env": {"A": 1}}, {"user": 5}, {"cwd": ["/"]}], ids=str)
def test_defaults_that_are_none(wrong: dict[str, Any]) -> None:
    entry = Listed("box", "/", "")
    (entry.folder / "defaults.json").write_text(json.dumps(wrong))
    assert defaults_at(entry.folder / "vsock") == Defaults()
    entry.close()


def test_how_far_it_has_come_is_told_and_for_how_long_it_has_been_at_it() -> None:
    entry = Listed("box", "/root", "")
    began = []
    for state, memory, ports in (
        (PREPARING, 0, {}),
        (BOOTING, 1 << 28, {8080: 80}),
        (RUNNING, 1 << 28, {8080: 80, 9: 1}),
    ):
        entry.tell(state, memory, ports)
        (told,) = listed()
        assert (told.state, told.memory, [*map(tuple, told.ports)]) == (state, memory, [*ports.items()])
        began.append(told.started)
        shown = CliRunner().invoke(cli, ["ps"]).output.splitlines()[1].split()
        shows = ("256M" if memory else "-", ",".join(f"{host}:{guest}" for host, guest in ports.items()) or "-")
        assert (shown[2], shown[5], shown[6]) == (state, *shows)
    assert len(set(began)) == 1
    entry.close()


def test_a_guest_that_cannot_be_told_of(tmp_path: Path) -> None:
    entry = Listed("box", "/root", "")
    (entry.folder / ".about.json").mkdir()
    with pytest.raises(HostError, match="XDG_RUNTIME_DIR says where else"):
        entry.tell(PREPARING)
    entry.close()


def test_two_of_one_name_are_told_apart_by_id() -> None:
    pair = [Listed("box", "/", "") for _ in range(2)]
    for entry in pair:
        entry.tell(RUNNING)
    with pytest.raises(UsageError, match="2 guests are named 'box'"):
        find_listed("box")
    assert find_listed(pair[0].id).id == pair[0].id
    for entry in pair:
        entry.close()


def test_what_a_killed_process_has_left_is_swept_away(tmp_path: Path) -> None:
    program = (
        "import time; from aiovmm.sandboxes.listed import Listed\n"
        "Listed('gone', '/', '').tell('running'); print('ready', flush=True); time.sleep(1000)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    if not listed():  # its object is garbage in that process, its lock is not
        pytest.fail("it is not listed while it runs")
    process.send_signal(signal.SIGKILL)
    process.wait()
    (folder,) = (tmp_path / "aiovmm/guests").iterdir()
    assert listed() == []
    assert not folder.exists()


def test_who_looks_at_the_same_time_is_not_taken_for_the_guests_process() -> None:
    dead = Listed("dead", "/", "")
    dead.tell(RUNNING)
    (entry,) = listed()
    assert entry.lives
    fcntl.flock(dead._lock, fcntl.LOCK_UN)
    with flocked(dead.folder / "lock", fcntl.LOCK_SH | fcntl.LOCK_NB, os.O_RDWR | os.O_CLOEXEC) as looks:
        assert looks
        assert not entry.lives
        assert listed() == []
    dead.close()


def test_one_that_is_being_made_is_left_alone_however_long_that_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a process that has no processor, or was stopped; meanwhile none that was killed is shown, either."""
    lock = os.open
    looked = []

    def slow(path: Path, flags: int, mode: int = 0o777) -> int:
        if str(path).endswith("/lock") and flags & os.O_CREAT:
            os.utime(Path(path).parent, (1, 1))
            assert listed() == []
            looked.append(Path(path).parent.exists())
        return lock(path, flags, mode)

    dead = Listed("dead", "/", "")
    dead.tell(RUNNING)
    fcntl.flock(dead._lock, fcntl.LOCK_UN)
    with monkeypatch.context() as context:
        context.setattr(os, "open", slow)
        entry = Listed("box", "/", "")
    assert looked == [True]
    assert dead.folder.exists()
    entry.tell(RUNNING)
    assert [entry.name for entry in listed()] == ["box"]
    assert not dead.folder.exists()
    entry.close()
    dead.close()


def test_a_runtime_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "aiovmm").mkdir(mode=0o777)
    os.chmod(tmp_path / "aiovmm", 0o777)
    with pytest.raises(UsageError, match="not a directory of this user alone"):
        listed()


async def test_a_console_is_kept_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LARGEST", 1000)
    entry, console = Listed("box", "/", ""), Console()
    entry.tell(RUNNING)
    keeping = asyncio.create_task(entry.keep(console, Worker("keep")))
    for number in range(10):
        console.feed(bytes([number]) * 600)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    console.close()
    await keeping
    assert sum(path.stat().st_size for path in entry.folder.glob("console*")) <= 2 * 1600
    assert b"".join(follow(entry.console, wait=False)).endswith(b"\x08" * 400 + b"\t" * 600)
    entry.close()


async def test_a_console_whose_file_takes_nothing_holds_up_nobody() -> None:
    entry, console = Listed("box", "/", ""), Console()
    os.mkfifo(entry.console)  # whose opening waits for a reader
    keeping = asyncio.create_task(entry.keep(console, Worker("keep")))
    console.feed(b"hello")
    for _ in range(10):
        await asyncio.sleep(0.001)
    assert not keeping.done()
    reading = os.open(entry.console, os.O_RDONLY | os.O_NONBLOCK)
    console.close()
    await asyncio.wait_for(keeping, HANGS)
    assert os.read(reading, 10) == b"hello"
    os.close(reading)
    entry.close()


def test_following_goes_through_files_that_take_turns(tmp_path: Path) -> None:
    folder = tmp_path / "guest"
    folder.mkdir()
    path = folder / "console"
    path.write_bytes(b"0")
    seen: list[bytes] = []
    thread = threading.Thread(target=lambda: seen.extend(follow(path, wait=True)))
    thread.start()
    for number in range(1, 6):
        with open(path, "ab") as out:
            out.write(b"%d" % number)
        wanted = b"".join(b"%d" % n for n in range(number + 1))
        deadline = time.monotonic() + HANGS
        while b"".join(seen) != wanted:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        path.rename(folder / "console.old")
        path.write_bytes(b"")
    path.unlink()
    (folder / "console.old").unlink()
    folder.rmdir()
    thread.join(HANGS)
    assert b"".join(seen) == b"012345"


def test_following_ends_with_a_process_that_was_killed() -> None:
    """Which leaves all as it was: nothing is written any more, and nothing goes away."""
    program = (
        "import time; from aiovmm.sandboxes.listed import Listed\n"
        "entry = Listed('box', '/', ''); entry.tell('running'); entry.console.write_bytes(b'said'); print('ready', flush=True)\n"
        "time.sleep(1000)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    following = subprocess.Popen(
        [sys.executable, "-m", "aiovmm", "logs", "-f", "box"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert following.stdout is not None
    assert following.stdout.read(4) == b"said"
    (entry,) = listed()
    assert entry.lives
    assert following.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert following.communicate(timeout=HANGS) == (b"", b"")
    assert following.returncode == 0
    assert not entry.lives


def test_who_follows_leaves_by_an_interrupt_without_a_word() -> None:
    entry = Listed("box", "/", "")
    entry.tell(RUNNING)
    entry.console.write_bytes(b"said")
    following = subprocess.Popen(
        [sys.executable, "-m", "aiovmm", "logs", "-f", "box"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert following.stdout is not None
    assert following.stdout.read(4) == b"said"
    following.send_signal(signal.SIGINT)
    assert following.communicate(timeout=20) == (b"", b"")
    assert following.returncode == 128 + signal.SIGINT
    entry.close()


def test_commands_of_others_have_what_the_image_says(tmp_path: Path) -> None:
    entry = Listed("box", "/", "")
    defaults = Defaults({"A": "image", "B": "image"}, "65534", "/usr")
    entry.tell(RUNNING)
    entry.default(defaults.but({"B": "run"}, None, "/tmp"))
    agent = subprocess.Popen([agent_binary(), "--unix", tmp_path / "agent"])
    fronts = [HybridFront(path, tmp_path / "agent") for path in (entry.folder / "vsock", tmp_path / "vsock")]
    script = ["sh", "-c", 'echo "$A $B"; id -u; pwd']

    def said(socket: Path, *options: str) -> list[str]:
        command = [sys.executable, "-m", "aiovmm", "exec", *options, str(socket), *script]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

    try:
        assert said(entry.folder / "vsock") == ["image run", "65534", "/tmp"]
        assert said(entry.folder / "vsock", "-e", "A=exec", "-u", "0", "-w", "/") == ["exec run", "0", "/"]
        assert said(tmp_path / "vsock") == [" ", "0", "/"]
        (entry.folder / "defaults.json").write_text("{")
        assert defaults_at(entry.folder / "vsock") == Defaults()
    finally:
        for front in fronts:
            front.close()
        agent.kill()
        agent.wait()
        entry.close()


def test_the_command_line() -> None:
    entry = Listed("box", "/some/root", "make test")
    entry.tell(RUNNING, 256 << 20)
    (entry.folder / "console").write_bytes(b"hello\r\n")
    run = CliRunner().invoke
    shown = run(cli, ["ps"]).output
    assert all(text in shown for text in (entry.id, "box", "256M", "/some/root", "make test"))
    told = json.loads(run(cli, ["ps", "--json"]).output)
    assert (told["name"], told["socket"]) == ("box", str(entry.folder / "vsock"))
    assert run(cli, ["logs", "box"]).stdout_bytes == b"hello\r\n"
    entry.close()


async def test_it_is_not_removed_while_something_is_made_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal that comes as its guest begins to print: the file would be made anew in what is being emptied."""
    lists, console = Worker("list"), Console()
    entry = Listed("one", "/root", "")
    begun, gate, opened, removes = threading.Event(), threading.Event(), Path.open, shutil.rmtree
    steps: list[str] = []

    def slow(path: Path, *args: Any, **kwargs: Any) -> Any:
        begun.set()
        assert gate.wait(HANGS)
        steps.append("made")
        return opened(path, *args, **kwargs)

    def remove(path: Path, **kwargs: Any) -> None:
        steps.append("removed")
        removes(path, **kwargs)

    monkeypatch.setattr(Path, "open", slow)
    monkeypatch.setattr(shutil, "rmtree", remove)
    keeping = asyncio.create_task(entry.keep(console, lists))
    assert await asyncio.to_thread(begun.wait, HANGS)
    keeping.cancel()
    closing = lists.submit(entry.close)
    asyncio.get_running_loop().call_later(0.1, gate.set)  # by then whoever does not wait has removed it
    await asyncio.wait([keeping, closing])
    await lists.aclose()
    assert steps == ["made", "removed"]
    assert not entry.folder.exists()
