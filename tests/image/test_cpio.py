"""The archive as the cpio tool reads it back."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.errors import UsageError
from aiovmm.image.cpio import CpioArchive

needs_cpio = pytest.mark.skipif(shutil.which("cpio") is None, reason="no cpio (package cpio)")


def sample() -> CpioArchive:
    archive = CpioArchive()
    archive.file("/bin/tool", b"#!/bin/sh\n", 0o755)
    archive.file("etc/odd name, é", b"1")
    archive.symlink("/bin/sh", "tool")
    archive.directory("/root", 0o700)
    archive.character_device("/dev/console", 5, 1)
    return archive


def listing(data: bytes) -> dict[str, list[str]]:
    done = subprocess.run(["cpio", "-t", "-v", "-n"], input=data, capture_output=True, check=True, timeout=20)
    assert b"error" not in done.stderr.lower()
    rows = [line.split(maxsplit=8) for line in done.stdout.decode().splitlines()]
    found = {}
    for row in rows:
        if row[0].startswith("c"):  # major, minor take the place of the size
            row = [*row[:4], row[4] + row[5], *" ".join(row[6:]).split(maxsplit=3)]
        found[row[8]] = row
    return found


@needs_cpio
def test_cpio_lists_it_with_types_modes_and_owners() -> None:
    rows = listing(sample().build())
    assert rows["bin"][0] == "drwxr-xr-x"
    assert rows["bin/tool"][0] == "-rwxr-xr-x"
    assert rows["bin/tool"][4] == "10"
    assert rows["bin/sh -> tool"][0] == "lrwxrwxrwx"
    assert rows["root"][0] == "drwx------"
    assert rows["dev/console"][0] == "crw-------"
    assert rows["dev/console"][4] == "5,1"
    assert {(row[2], row[3]) for row in rows.values()} == {("0", "0")}


@needs_cpio
def test_cpio_extracts_the_same_content(tmp_path: Path) -> None:
    archive = CpioArchive()
    contents = {f"d{i}/f{i}": bytes(range(i % 256)) * i for i in range(40)}
    for path, data in contents.items():
        archive.file(path, data, 0o640)
    archive.symlink("d1/link", "../d2/f2")
    subprocess.run(
        ["cpio", "-i", "-d"], input=archive.build(), cwd=tmp_path, check=True, capture_output=True, timeout=20
    )
    for path, data in contents.items():
        assert (tmp_path / path).read_bytes() == data
        assert stat.S_IMODE((tmp_path / path).stat().st_mode) == 0o640
    assert (tmp_path / "d1/link").readlink() == Path("../d2/f2")


NAMES = st.lists(st.text("abé./-", min_size=1, max_size=9), max_size=12)


@needs_cpio
@given(NAMES, st.binary(max_size=50))
def test_any_names_and_sizes_make_an_archive_that_cpio_reads(names: list[str], data: bytes) -> None:
    archive = CpioArchive()
    for i, name in enumerate(names):
        try:
            archive.file(f"f{i}/{name}", data * i)
        except UsageError:
            assert ".." in name.split("/") or not name.strip("./")
    done = subprocess.run(["cpio", "-t", "--quiet"], input=archive.build(), capture_output=True, check=True, timeout=20)
    assert done.stderr == b""
    assert len(done.stdout.splitlines()) == len(archive.paths)


def test_order_of_adding_does_not_show() -> None:
    one, other = CpioArchive(), CpioArchive()
    for archive, order in ((one, "abc"), (other, "cab")):
        for name in order:
            archive.file(f"/x/{name}", name.encode())
    assert one.build() == other.build()


def test_parents_come_before_their_children() -> None:
    archive = CpioArchive()
    archive.file("/a/b/c", b"")
    archive.file("/a-b", b"")
    paths = archive.paths
    assert paths.index("a") < paths.index("a/b") < paths.index("a/b/c")


def test_alignment_that_the_kernel_demands() -> None:
    """buffer-format.rst: headers begin at multiples of 4 bytes."""
    data = sample().build()
    at, count = 0, 0
    while data[at : at + 6] == b"070701":
        assert at % 4 == 0
        name_size, size = int(data[at + 94 : at + 102], 16), int(data[at + 54 : at + 62], 16)
        at = (at + 110 + name_size + 3 & ~3) + size + 3 & ~3
        count += 1
    assert count == len(sample().paths) + 1
    assert not data[at:].strip(b"\0")
    assert len(data) % 512 == 0


@pytest.mark.parametrize("path", ["", "/", "../x", "a/../b", "a\0b", "."])
def test_paths_that_cannot_be(path: str) -> None:
    with pytest.raises(UsageError):
        CpioArchive().file(path, b"")


def test_file_in_the_place_of_a_directory() -> None:
    archive = CpioArchive()
    archive.file("a", b"")
    with pytest.raises(UsageError, match="not a directory"):
        archive.file("a/b", b"")


def test_names_that_are_no_utf8_and_names_too_long() -> None:
    archive = CpioArchive()
    archive.file("/a\udcff", b"x")
    archive.symlink("/b", "\udcfe")
    data = archive.build()
    assert b"a\xff\0" in data
    assert b"\xfe" in data
    with pytest.raises(UsageError, match="too long"):
        archive.file("/" + "x/" * 3000 + "y", b"")


@pytest.mark.parametrize("path", ["a/" + "é" * 128, "é/" * 1400 + "x", "TRAILER!!!"])
def test_what_a_kernel_would_leave_out_without_a_word_is_refused(path: str) -> None:
    archive = CpioArchive()
    with pytest.raises(UsageError, match="in an archive"):
        archive.file(path, b"x")
    archive.file("a/" + "é" * 127 + "x", b"x")
    archive.file("a/TRAILER!!!", b"x")


@pytest.mark.parametrize("target", ["", "é" * 2048, "a\0b"])
def test_a_link_that_a_kernel_would_leave_out_is_refused(target: str) -> None:
    archive = CpioArchive()
    with pytest.raises(UsageError, match="cannot be a path"):
        archive.symlink("a", target)
