"""`files`: of a guest, and trees in and out."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from aiovmm import AgentLost, GuestOSError, HostError, UsageError
from aiovmm.agent import Agent
from aiovmm.agent.files import Files
from aiovmm.agent.host_tree import Copied, TreeWriter, read_tree
from aiovmm.agent.process import start
from aiovmm.agent.request import DEVNULL, PIPE, Request
from tests.agent.conftest import Guest
from tests.faults.stalling import stalling


@pytest.fixture
def files(agent: Agent) -> Files:
    return Files(agent)


async def test_read_and_write(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "a"
    await files.write(path, b"\0\xff" * 300000)
    assert path.read_bytes() == b"\0\xff" * 300000
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert await files.read(path) == b"\0\xff" * 300000
    await files.write(path, "ä", mode=0o600)
    await files.write(path, "b", append=True)
    assert path.read_text() == "äb"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    await files.write(path, b"")
    assert await files.read(path) == b""


async def test_what_has_no_size_can_be_read(files: Files) -> None:
    assert (await files.read("/proc/self/stat")).endswith(b"\n")


async def test_setuid_is_not_to_be_had(files: Files, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        await files.write(tmp_path / "a", b"", mode=0o4755)
    with pytest.raises(UsageError):
        await files.mkdir(tmp_path / "a", mode=0o2755)


async def test_a_limit(files: Files) -> None:
    with pytest.raises(UsageError, match="more than 1000 bytes"):
        await files.read("/dev/zero", limit=1000)


async def test_list_and_stat(files: Files, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "dir").mkdir()
    (tmp_path / "link").symlink_to("file")
    strange = os.fsdecode(b"\xff\xfe")
    (tmp_path / strange).touch()
    found = {entry.name: entry for entry in await files.list(tmp_path)}
    assert list(found) == sorted(["file", "dir", "link", strange])
    assert (found["file"].size, found["file"].is_file, found["dir"].is_dir) == (5, True, True)
    assert (found["link"].is_link, found["link"].target) == (True, "file")
    assert found["file"].mtime == pytest.approx((tmp_path / "file").stat().st_mtime)
    assert (await files.stat(tmp_path / "link")).size == 5
    assert (await files.stat(tmp_path / "link", follow=False)).is_link
    assert await files.exists(tmp_path / "link")
    assert not await files.exists(tmp_path / "nothing")


async def test_a_long_list(files: Files, tmp_path: Path) -> None:
    for number in range(3000):
        (tmp_path / f"{number:0100}").touch()
    assert len(await files.list(tmp_path)) == 3000


async def test_make_and_remove(files: Files, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await files.mkdir(tmp_path / "a/b")
    await files.mkdir(tmp_path / "a/b/c", parents=True, mode=0o700)
    await files.mkdir(tmp_path / "a/b/c", parents=True)
    assert stat.S_IMODE((tmp_path / "a/b/c").stat().st_mode) == 0o700
    await files.mkdir(tmp_path / "open/shared", parents=True, mode=0o777)  # whatever the agent's umask is
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "open/shared").stat().st_mode) == 0o777
    with pytest.raises(FileExistsError):
        await files.mkdir(tmp_path / "a")
    for number in range(200):
        (tmp_path / f"a/b/{number}").touch()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    (tmp_path / "a/link").symlink_to(tmp_path / "kept")
    with pytest.raises(GuestOSError, match="not empty"):
        await files.remove(tmp_path / "a")
    await files.remove(tmp_path / "a", recursive=True)
    assert not (tmp_path / "a").exists()
    assert (tmp_path / "kept/file").exists()
    await files.remove(tmp_path / "kept/file")
    with pytest.raises(FileNotFoundError):
        await files.remove(tmp_path / "kept/file")
    with pytest.raises(FileNotFoundError):
        await files.remove(tmp_path / "nothing", recursive=True)


@pytest.mark.parametrize("user", ["nobody", 65534])
async def test_as_another_user(files: Files, user: str | int) -> None:
    with pytest.raises(PermissionError, match="/etc/shadow"):
        await files.read("/etc/shadow", user=user)
    with pytest.raises(PermissionError):
        await files.write("/etc/new", b"x", user=user)


async def test_errors_name_the_file(files: Files, tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        await files.read(tmp_path)
    with pytest.raises(NotADirectoryError):
        await files.list("/etc/passwd")
    with pytest.raises(FileNotFoundError):
        await files.write(tmp_path / "a/b", bytes(10 << 20))


def make_tree(path: Path) -> None:
    (path / "sub/deep").mkdir(parents=True)
    (path / "a").write_bytes(bytes(range(256)) * 3000)
    (path / "sub/empty").touch()
    (path / "sub/deep" / os.fsdecode(b"\xff")).write_bytes(b"x")
    (path / "sub/link").symlink_to("../a")
    (path / "a").chmod(0o4750)
    (path / "sub").chmod(0o500)
    os.utime(path / "a", ns=(0, 1_500_000_000_123_456_789))


def check_tree(path: Path) -> None:
    assert (path / "a").read_bytes() == bytes(range(256)) * 3000
    assert stat.S_IMODE((path / "a").stat().st_mode) == 0o750
    assert (path / "a").stat().st_mtime_ns == 1_500_000_000_123_456_789
    assert (path / "sub/empty").read_bytes() == b""
    assert (path / "sub/deep" / os.fsdecode(b"\xff")).read_bytes() == b"x"
    assert os.readlink(path / "sub/link") == "../a"


async def test_a_directory_that_was_there_is_for_whom_it_was(files: Files, tmp_path: Path) -> None:
    """A guest opens no directory of the host's to others."""
    (tmp_path / "guest/sub/new").mkdir(parents=True)
    for name in ("guest", "guest/sub", "guest/sub/new"):
        (tmp_path / name).chmod(0o777)
    (tmp_path / "back/sub").mkdir(mode=0o700, parents=True)
    (tmp_path / "back").chmod(0o750)
    await files.copy_out(tmp_path / "guest", tmp_path / "back")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("back", "back/sub", "back/sub/new")]
    assert modes == [0o750, 0o700, 0o777]


async def test_files_that_do_not_say_how_much_there_is(files: Files, tmp_path: Path) -> None:
    """Those of /proc have no size, and no sendfile."""
    copied = await files.copy_out("/proc/version", tmp_path / "version")
    assert (tmp_path / "version").read_text() == Path("/proc/version").read_text()  # noqa: ASYNC240
    assert copied.left_out == []


async def test_a_file_that_gets_shorter_while_it_is_copied(agent: Agent, tmp_path: Path) -> None:
    """How long a piece is has been said before: the rest of it is zeros, and that it is not the file's is told."""
    path = tmp_path / "long"
    path.touch()
    os.truncate(path, 64 << 20)
    request = Request(args=("pack", path), modes=(DEVNULL, PIPE, DEVNULL), applet=True, window=1 << 20)
    process = await start(agent, request)
    assert process.pieces is not None
    writer = TreeWriter(str(tmp_path / "copy"))
    pieces = await process.pieces.take()
    os.truncate(path, 100)
    while pieces:
        for piece in pieces:
            writer.feed(piece)
        pieces = await process.pieces.take()
    assert await process.wait() == 0
    writer.close()
    assert writer.ended
    assert writer.copied.left_out == [("", "its end could not be read: Input/output error")]
    assert writer.copied.size % (512 << 10) == 0 < writer.copied.size < 64 << 20


async def test_trees_in_and_out(files: Files, tmp_path: Path) -> None:
    make_tree(tmp_path / "from")
    copied = await files.copy_in(tmp_path / "from", tmp_path / "guest")
    check_tree(tmp_path / "guest")
    assert (copied.files, copied.size, copied.left_out) == (3, 256 * 3000 + 1, [])
    copied = await files.copy_out(tmp_path / "guest", tmp_path / "back")
    check_tree(tmp_path / "back")
    assert (copied.files, copied.size, copied.left_out) == (3, 256 * 3000 + 1, [])
    await files.copy_in(tmp_path / "from", tmp_path / "guest")  # over what is there
    await files.copy_out(tmp_path / "guest", tmp_path / "back")
    check_tree(tmp_path / "back")


async def test_one_file_in_and_out(files: Files, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(9 << 20))
    (tmp_path / "link").symlink_to("a")
    await files.copy_in(tmp_path / "link", tmp_path / "guest")
    await files.copy_out(tmp_path / "guest", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == bytes(9 << 20)
    assert not (tmp_path / "guest").is_symlink()


async def test_what_is_left_out_is_told(files: Files, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    os.mkfifo(tree / "pipe")
    (tree / "out").symlink_to("/etc/passwd")
    (tree / "up").symlink_to("../secret")
    (tree / "inside").symlink_to("file")
    (tree / "file").touch()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tree / "socket"))
        copied = await files.copy_out(tree, tmp_path / "copy")
        into = await files.copy_in(tree, tmp_path / "guest")
    assert {path for path, _ in copied.left_out} == {"pipe", "out", "up", "socket"}
    assert sorted(entry.name for entry in (tmp_path / "copy").iterdir()) == ["file", "inside"]
    assert {path for path, _ in into.left_out} == {"pipe", "socket"}
    assert os.readlink(tmp_path / "guest/out") == "/etc/passwd"  # the host's links mean what the guest makes of them


@pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse")
async def test_a_directory_that_cannot_be_read_is_not_an_empty_one(files: Files, tmp_path: Path) -> None:
    """Of a file system that has a file, and says not which."""
    (tmp_path / "tree/bad").mkdir(parents=True)
    (tmp_path / "tree/file").touch()
    with stalling(tmp_path / "tree/bad", 4096):
        copied = await files.copy_out(tmp_path / "tree", tmp_path / "copy")
        assert copied.left_out == [("bad", os.strerror(errno.ENOSYS))]
        assert (tmp_path / "copy/file").exists()
        with pytest.raises(GuestOSError) as failed:
            await files.copy_out(tmp_path / "tree/bad", tmp_path / "other")
        assert failed.value.errno == errno.ENOSYS


async def test_links_that_are_there_are_not_followed(files: Files, tmp_path: Path) -> None:
    """Neither on the host nor in the guest: what is in the way is replaced, or refused."""
    (tmp_path / "from/dir").mkdir(parents=True)
    (tmp_path / "from/dir/file").write_bytes(b"new")
    (tmp_path / "from/name").write_bytes(b"new")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/file").write_bytes(b"old")
    for target, error in (("host", HostError), ("guest", GuestOSError)):
        place = tmp_path / target
        place.mkdir()
        (place / "dir").symlink_to(tmp_path / "secret")
        (place / "name").symlink_to(tmp_path / "secret/file")
        copy = files.copy_out if target == "host" else files.copy_in
        with pytest.raises(error):
            await copy(tmp_path / "from", place)
        (place / "dir").unlink()
        await copy(tmp_path / "from", place)
        assert (place / "name").read_bytes() == b"new"
        assert not (place / "name").is_symlink()
    assert (tmp_path / "secret/file").read_bytes() == b"old"


async def test_devices_that_are_there_are_not_replaced(files: Files, tmp_path: Path) -> None:
    """Somebody who copies to /dev/null means to have no copy, and not to have no /dev/null."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "null").write_bytes(b"new")
    (tmp_path / "one").write_bytes(b"new")
    for copy, error in ((files.copy_out, HostError), (files.copy_in, FileExistsError)):
        place = tmp_path / copy.__name__
        place.mkdir()
        os.mknod(place / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        for source, target in ((tree, place), (tmp_path / "one", place / "null")):
            with pytest.raises(error, match="File exists"):
                await copy(source, target)
        assert stat.S_ISCHR((place / "null").lstat().st_mode)
    (tmp_path / "link").symlink_to("copy_out/null")  # /dev/stdout is one
    with pytest.raises(HostError, match="which is not replaced"):
        await files.copy_out(tmp_path / "one", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()


async def test_host_errors_name_the_file(files: Files, agent: Agent, guest: Guest, tmp_path: Path) -> None:
    before = guest.descriptors
    with pytest.raises(HostError, match="nowhere"):
        await files.copy_in(tmp_path / "nowhere", tmp_path / "x")
    with pytest.raises(HostError, match="no/such"):
        await files.copy_out("/etc/passwd", tmp_path / "no/such")
    with pytest.raises(FileNotFoundError, match="/nowhere"):
        await files.copy_out("/nowhere", tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        await files.copy_in("/etc/passwd", tmp_path / "no/such")
    assert await files.read("/dev/null") == b""
    await guest.idle(before)


def replaced(path: Path, by: str, outside: Path) -> None:
    if path.is_dir():
        path.rename(path.with_name("was"))
    else:
        path.unlink()
    if by == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(outside / path.name)


@pytest.mark.parametrize("by", ["link", "pipe"])
@pytest.mark.parametrize("when", range(8))
def test_what_a_guest_replaces_while_it_is_copied_leads_nowhere_else(tmp_path: Path, by: str, when: int) -> None:
    """A directory that a guest shares is copied into another: it may put a link to the host's files there at any moment."""
    for place, text in (("shared", b"its own"), ("outside", b"the host's")):
        (tmp_path / place / "a" / "b").mkdir(parents=True)
        for path in ("f", "a/f", "a/b/f"):
            (tmp_path / place / path).write_bytes(text)
    pieces, came = read_tree(str(tmp_path / "shared"), Copied()), b""
    with suppress(HostError):
        for n, piece in enumerate(pieces):
            came += piece
            if n == when:
                for path in ("f", "a/f", "a/b/f", "a/b", "a"):
                    replaced(tmp_path / "shared" / path, by, tmp_path / "outside" / path.rpartition("/")[0])
    assert b"the host's" not in came
    assert b"its own" in came or when < 4


async def test_deep_trees_are_cut_the_same_both_ways(files: Files, tmp_path: Path) -> None:
    deep = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1200):  # more than Python nests calls
        os.mkdir("a", dir_fd=deep)
        above, deep = deep, os.open("a", os.O_RDONLY, dir_fd=deep)
        os.close(above)
    os.close(deep)
    copies = []
    for copy, place in ((files.copy_in, tmp_path / "in"), (files.copy_out, tmp_path / "out")):
        copied = await copy(tmp_path / "a", place)
        copies.append((copied.left_out, len(list(place.rglob("*")))))
    subprocess.run(["rm", "-r", tmp_path / "a"], check=True)  # noqa: ASYNC221 - nobody else sweeps so deep
    assert copies[0] == copies[1]
    assert copies[0] == ([("/".join("a" * 129), os.strerror(errno.ELOOP))], 128)


async def test_the_agent_dies_in_mid_copy(files: Files, guest: Guest, tmp_path: Path) -> None:
    guest.process.kill()
    with pytest.raises((AgentLost, TimeoutError)):
        await files.copy_out("/usr/lib", tmp_path / "x")
