"""`aiovmm disk`, as a user types it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from aiovmm.cli.commands import cli
from tests.limits import HANGS


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["disk", *map(str, arguments)])


def ok(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code != 0
    return f"{result.output}{result.exception}"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.img"
    path.write_bytes(os.urandom(1 << 20))
    return path


def test_the_life_of_an_overlay(base: Path, tmp_path: Path) -> None:
    content = base.read_bytes()
    top, new = tmp_path / "top.ovl", tmp_path / "new.img"
    ok("create", top, "--base", base, "--size", "2M")
    facts = json.loads(ok("info", top, "--json"))
    assert (facts["format"], facts["size"], facts["written"], facts["state"]) == ("overlay", 2 << 20, 0, "whole")
    assert facts["base"] == str(base)
    ok("copy", base, new, "--overlay", top)
    assert new.read_bytes() == content + bytes(1 << 20)
    other = tmp_path / "other.img"
    other.write_bytes(bytes(1 << 20))
    ok("rebase", top, "--from", base, "--base", other)
    assert json.loads(ok("info", top, "--json"))["written"] == 1 << 20
    ok("commit", top, "--base", other)
    assert other.read_bytes() == content + bytes(1 << 20)
    assert json.loads(ok("info", top, "--json"))["written"] == 0
    os.utime(other)
    assert "--same" in refused("copy", other, tmp_path / "x", "--overlay", top)
    ok("rebase", top, "--base", other, "--same")
    ok("copy", other, tmp_path / "x", "--overlay", top)


DOOMED = """
import os, signal, sys
from aiovmm.cli import main
os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)
sys.argv[1:1] = ["disk"]
main()
"""


@pytest.mark.parametrize("asked", ["copy base.img new", "create new --base base.img"])
def test_one_that_is_killed_leaves_nothing(asked: str, base: Path, tmp_path: Path) -> None:
    """Of a copy it would be as large as the disk, and hidden."""
    require_unnamed_files(tmp_path)
    command = [sys.executable, "-c", DOOMED, *asked.split()]
    done = subprocess.run(command, timeout=HANGS, capture_output=True, cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert os.listdir(tmp_path) == [base.name]


def require_unnamed_files(place: Path) -> None:
    try:
        os.close(os.open(place, os.O_RDWR | os.O_TMPFILE))
    except OSError as exc:
        pytest.skip(f"none have no name there: {exc}")


@pytest.mark.parametrize("is_without", [errno.EOPNOTSUPP, errno.EISDIR, 0])
def test_a_copy_appears_whole_and_in_nobodys_place(
    base: Path, tmp_path: Path, is_without: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no file may be without a name."""
    opened = os.open

    def without(path: str | Path, flags: int, *args: Any, **kwargs: Any) -> int:
        if is_without and flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(is_without, os.strerror(is_without), str(path))
        return opened(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", without)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_bytes(b"somebody's")
    (tmp_path / "link").symlink_to("nowhere")
    ok("copy", base.name, "new")
    assert "choose another name" in refused("copy", base, "taken")
    assert "choose another name" in refused("copy", base, "link")
    assert (tmp_path / "new").read_bytes() == base.read_bytes()
    assert (tmp_path / "taken").read_bytes() == b"somebody's"
    assert sorted(os.listdir(tmp_path)) == sorted([base.name, "link", "new", "taken"])
    assert os.stat("new").st_mode & 0o777 == os.stat("base.img").st_mode & 0o777


def test_info_says_what_a_file_is(base: Path, tmp_path: Path) -> None:
    assert "format: raw\n" in ok("info", base)
    (tmp_path / "q").write_bytes(b"QFI\xfb" + bytes(600))
    assert "format: qcow2\n" in ok("info", tmp_path / "q")
    assert "No such file" in refused("info", tmp_path / "nothing")
    assert "neither a file nor a block device" in refused("info", tmp_path)


def test_an_empty_raw_image(tmp_path: Path) -> None:
    ok("create", tmp_path / "new", "--size", "1G")
    status = (tmp_path / "new").stat()
    assert (status.st_size, status.st_blocks) == (1 << 30, 0)
    assert "File exists" in refused("create", tmp_path / "new", "--size", "1G")


def test_what_is_missing_is_said(base: Path, tmp_path: Path) -> None:
    top = tmp_path / "top"
    assert "--base IMAGE for an overlay, or --size" in refused("create", top)
    ok("create", top, "--base", base)
    assert "File exists" in refused("create", top, "--base", base)
    assert "aiovmm disk info" in refused("commit", top)
    assert "--from OLD" in refused("rebase", top, "--base", base)
    assert "is an overlay, and only raw images" in refused("commit", base, "--base", top)
    assert "has a map for" in refused("create", tmp_path / "huge", "--base", base, "--size", "4096T")
    assert not (tmp_path / "huge").exists()


def test_a_disk_of_nothing_is_none(tmp_path: Path) -> None:
    assert "0 bytes are no disk: say how many" in refused("create", tmp_path / "new", "--size", "0")
    assert not (tmp_path / "new").exists()
