"""The files of a snapshot: whatever happens while a new one is written, the old one or the new one is there, whole."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from aiovmm.errors import HostError, SnapshotError
from aiovmm.snapshot import directory
from aiovmm.snapshot.directory import STATE, Opened, Written, open_snapshot
from aiovmm.snapshot.document import decode, encode
from tests.open_files import descriptors

SIZE = 1 << 20
STATE_OF_ONE = {"architecture": "x86_64", "config": {"name": "a"}, "machine": {"n": 1}}


def write(path: Path, number: int = 1, content: bytes = b"memory", text: str = "") -> None:
    written = Written(path, SIZE)
    try:
        written.open()
        os.pwrite(written.memory, content, 4096)
        machine = {"n": number, "text": text} if text else {"n": number}
        written.commit({**STATE_OF_ONE, "machine": machine}, 1, 7)
    finally:
        written.close()


def opened(path: Path) -> Opened:
    found = open_snapshot(path)
    os.close(found.memory)
    return found


def test_it_is_private_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(p.stat().st_mode) for p in path.iterdir()} == {0o600}
    found = open_snapshot(path)
    assert os.pread(found.memory, 6, 4096) == b"memory"
    os.close(found.memory)
    assert (found.state, found.pages, found.sum) == (STATE_OF_ONE, 1, 7)


def test_a_new_one_takes_its_place_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write(path)
    (path / "memory-0123456789abcdef").write_bytes(b"of one that was killed")
    (path / "state.json.new").write_bytes(b"likewise")
    (path / "mine").write_bytes(b"somebody's own")
    old = open_snapshot(path)
    write(path, 2, b"newer!")
    assert os.pread(old.memory, 6, 4096) == b"memory", "who has it open has it whole"
    os.close(old.memory)
    assert opened(path).state["machine"] == {"n": 2}
    assert len(list(path.iterdir())) == 3


def test_one_that_is_not_finished_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write(path)
    before = sorted(os.listdir(path))
    written = Written(path, SIZE)
    written.open()
    os.pwrite(written.memory, b"half", 0)
    with pytest.raises(SnapshotError, match="another snapshot is being written"):
        Written(path, SIZE).open()
    written.close()
    written.close()
    assert sorted(os.listdir(path)) == before
    assert opened(path).state == STATE_OF_ONE


def test_one_that_is_not_finished_takes_the_directory_along_that_was_made_for_it(tmp_path: Path) -> None:
    path = tmp_path / "s"
    written = Written(path, SIZE)
    written.open()
    written.close()
    assert not path.exists()
    path.mkdir()
    written.open()
    written.close()
    assert path.exists(), "which somebody else has made"
    path.rmdir()
    written.open()
    (path / "mine").touch()
    written.close()
    assert os.listdir(path) == ["mine"]


def test_a_directory_that_goes_while_it_is_opened_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one that failed, between another's open and lock."""
    first, second = (Written(tmp_path / "s", SIZE) for _ in range(2))
    first.open()
    lock = fcntl.flock

    def late(fd: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        first.close()
        lock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    second.open()
    second.commit(STATE_OF_ONE, 0, 0)
    second.close()
    assert opened(tmp_path / "s").state == STATE_OF_ONE


def test_a_child_that_was_forked_meanwhile_does_not_keep_others_from_writing_there(tmp_path: Path) -> None:
    """It has a descriptor of the same open directory, until it ends or becomes another program."""
    written = Written(tmp_path / "s", SIZE)
    written.open()
    gone, stays = os.pipe()
    if not (child := os.fork()):
        os.read(gone, 1)
        os._exit(0)
    try:
        written.close()
        write(tmp_path / "s", 2)
    finally:
        os.write(stays, b"x")
        os.waitpid(child, 0)
        os.close(gone)
        os.close(stays)
    assert opened(tmp_path / "s").state["machine"] == {"n": 2}


def test_a_disk_that_is_full_leaves_the_old_one(small: Path) -> None:
    path = small / "s"
    write(path, 1, b"first")
    with (small / "rest").open("wb", buffering=0) as rest:
        fill(rest.fileno())
    with pytest.raises(OSError, match="No space"):
        write(path, 2, b"second")
    os.truncate(small / "rest", (small / "rest").stat().st_size - 16 * 4096)
    with pytest.raises(HostError, match="free some space"):
        write(path, 2, b"second", "x" * (100 << 10))  # the memory, but not the state
    found = open_snapshot(path)
    assert os.pread(found.memory, 5, 4096) == b"first"
    os.close(found.memory)
    assert len(list(path.iterdir())) == 2


def fill(fd: int) -> None:
    with suppress(OSError):
        while True:
            os.write(fd, bytes(4096))


WRITER = """
import sys
from pathlib import Path
from tests.snapshot.test_directory import write
number = 0
while True:
    number += 1
    write(Path(sys.argv[1]), number, b"%06d" % number)
    print(number, flush=True)
"""


def test_who_is_killed_leaves_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "s"
    for turn in range(12):
        root = Path(__file__).resolve().parent.parent.parent
        with subprocess.Popen([sys.executable, "-c", WRITER, path], cwd=root, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            for _ in range(1 + turn):  # then somewhere in the next
                said = writer.stdout.readline()
            writer.kill()
        found = open_snapshot(path)
        number = found.state["machine"]["n"]
        assert number >= int(said)
        assert os.pread(found.memory, 6, 4096) == b"%06d" % number
        os.close(found.memory)


def a_pipe_instead(_path: Path, memory: Path) -> None:
    memory.unlink()
    os.mkfifo(memory)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p, m: m.unlink(), "has no memory-"),
        (lambda p, m: os.truncate(m, SIZE - 4096), "cut short"),
        (lambda p, m: (p / STATE).unlink(), "has no state.json"),
        (lambda p, m: os.truncate(p / STATE, 100), "checksum"),
        (lambda p, m: (m.unlink(), m.symlink_to("/etc/passwd")), "symbolic link|Too many levels"),
        (a_pipe_instead, "no file of a snapshot"),
        (lambda p, m: ((p / STATE).unlink(), (p / STATE).mkdir()), "no file of a snapshot"),
    ],
)
def test_what_is_damaged_is_refused(tmp_path: Path, change: Callable[[Path, Path], object], said: str) -> None:
    path = tmp_path / "s"
    write(path)
    (memory,) = path.glob("memory-*")
    change(path, memory)
    before = descriptors()
    with pytest.raises((SnapshotError, HostError), match=said):
        open_snapshot(path)
    assert descriptors() <= before


MEMORY = {"file": "memory-0", "size": 1, "pages": 0, "sum": 0, "base_sha256": "", "maps_sha256": ""}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 2}, "version 2, and this aiovmm reads version 1"),
        ({"format": "tar"}, "format"),
        ({"more": 1}, "does not know: 'more'"),
        ({"memory": {"file": "../../etc/passwd", "size": 1, "pages": 0, "sum": 0}}, "no name of such a file"),
        ({"memory": {**MEMORY, "base": ""}}, "base is no name of a directory"),
        ({"memory": {**MEMORY, "base": "a\0"}}, "base is no name of a directory"),
        ({"memory": {**MEMORY, "base": "\ud800"}}, "base is no name of a directory"),
        ({"memory": 5}, "memory"),
        ({"config": None}, "config"),
    ],
)
def test_a_state_that_says_something_else(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    from aiovmm.snapshot.document import decode, encode

    path = tmp_path / "s"
    write(path)
    state = decode((path / STATE).read_bytes())
    (path / STATE).write_bytes(encode({**state, **changes}))
    with pytest.raises(SnapshotError, match=said):
        open_snapshot(path)


def test_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="No such file"):
        open_snapshot(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="Not a directory"):
        open_snapshot(tmp_path / "file")
    with pytest.raises(HostError, match="No such file"):
        Written(tmp_path / "none" / "deeper", SIZE).open()


def test_one_that_is_replaced_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory is gone by then; the new one's is there."""
    path = tmp_path / "s"
    write(path)
    opening = directory._open_regular

    def late(path: Path, at: int, name: str, size: int | None = None) -> int:
        if name != STATE:
            monkeypatch.setattr(directory, "_open_regular", opening)
            write(path, 2)
        return opening(path, at, name, size)

    monkeypatch.setattr(directory, "_open_regular", late)
    assert opened(path).state["machine"] == {"n": 2}


def test_one_that_is_always_another_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who writes there without end does not hold up a thread without end."""
    path = tmp_path / "s"
    write(path)
    documents = (encode({"format": "aiovmm snapshot", "version": n}) for n in range(2, 1000))
    monkeypatch.setattr(directory, "_read_state", lambda path, at: next(documents))
    with pytest.raises(SnapshotError, match="it is of version"):
        opened(path)
    assert decode(next(documents))["version"] < 20


def test_the_name_of_a_new_one_is_on_the_medium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    write(tmp_path / "s")
    assert tmp_path.stat().st_ino in synced
    assert (tmp_path / "s").stat().st_ino == synced[-1]


def test_more_state_than_can_be_read_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "s")
    monkeypatch.setattr(directory, "LARGEST", 4096)
    with pytest.raises(SnapshotError, match="no snapshot may have more than 4096"):
        write(tmp_path / "s", 2, text="x" * 4096)
    assert opened(tmp_path / "s").state["machine"] == {"n": 1}


def test_no_room_is_made_for_state_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As much as a state may be at most is more than some processes may have (`ulimit -v`)."""
    write(tmp_path / "s")
    monkeypatch.setattr(directory, "LARGEST", 1 << 50)
    assert opened(tmp_path / "s").state["machine"] == {"n": 1}
