"""What an image can cost whoever makes it: no entry is more work the more there are, and all of it has an end."""

from __future__ import annotations

import asyncio
import gzip
import io
import lzma
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import zstandard

from aiovmm.errors import ImageError
from aiovmm.rootfs import layout as layouts
from aiovmm.rootfs import tree as trees
from aiovmm.rootfs.blocks import Allowance, TooLarge
from aiovmm.rootfs.documents import DocumentError, parse_configuration
from aiovmm.rootfs.image import Image
from aiovmm.rootfs.kinds import kind_of
from aiovmm.rootfs.layer import LeftOut
from aiovmm.rootfs.layout import FilesOfArchive
from aiovmm.rootfs.limits import DEEPEST, Limits
from aiovmm.rootfs.streams import expanded
from aiovmm.rootfs.tar import TarError
from aiovmm.rootfs.tree import Node, Tree, TreeError
from tests.limits import HANGS
from tests.rootfs.conftest import Made, Member, archive, directory, file, hardlink, symlink
from tests.rootfs.test_tar import extended


class Looks(dict[bytes, Node]):
    """A directory's children, of which it is counted how often they are looked at."""

    count = 0

    def __getitem__(self, name: bytes) -> Node:
        Looks.count += 1
        return super().__getitem__(name)

    def items(self):  # type: ignore[no-untyped-def]
        """As a dict's."""
        Looks.count += len(self)
        return super().items()


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> type[Looks]:
    def made(*args: object, **fields: object) -> Node:
        node = Node(*args, **fields)  # type: ignore[arg-type]
        node.children = Looks()
        return node

    monkeypatch.setattr(trees, "Node", made)
    monkeypatch.setattr("aiovmm.rootfs.layer.Node", made)
    monkeypatch.setattr(Looks, "count", 0)
    return Looks


MANY = 300


@pytest.mark.parametrize("again", ["d/.wh..wh..opq", ".wh.d", ".wh..wh..opq"])
def test_saying_again_that_older_layers_have_nothing_there(tmp_path: Path, looks: type[Looks], again: str) -> None:
    members = [file(f"d/e/{number}") for number in range(MANY)]
    base = archive(directory("d"), file("d/old"), *members)
    said = [file(again)] * MANY
    layer = archive(file("d/new"), *members, *said, file("d/newer"), *said)
    made = Made(tmp_path / "i", [base, layer])
    assert looks.count < 20 * MANY
    assert made.paths() == {"d", "d/new", "d/newer", "d/e"} | {f"d/e/{number}" for number in range(MANY)}


def test_layers_that_say_little_cost_little(tmp_path: Path, looks: type[Looks]) -> None:
    base = archive(*(file(f"d/{number}") for number in range(MANY)))
    layers = [archive(file(".wh..wh.aufs"), file(f"{number}")) for number in range(MANY)]
    made = Made(tmp_path / "i", [base, *layers])
    assert looks.count < 20 * MANY
    assert len(made.paths()) == 2 * MANY + 1


def test_a_file_of_aufs_in_what_is_gone_is_not_let_go_of_twice(tmp_path: Path) -> None:
    """Its other name has its content, whatever comes into free blocks later."""
    inner = file("d/.wh..wh.a", b"x" * 8192)
    layer = archive(inner, hardlink("kept", "d/.wh..wh.a"), file("d"), file("later", b"y" * 8192))
    made = Made(tmp_path / "i", [layer])
    kept, later = made.tree.find(b"kept"), made.tree.find(b"later")
    assert kept is not None
    assert later is not None
    assert kept.names == 1
    assert kept.content.block != later.content.block


def test_links_that_are_long_ways_end(tmp_path: Path) -> None:
    around = "/".join(["d", ".."] * 800) + "/d"
    members: list[Member] = [directory("d"), symlink("l", around), *(file(f"l/{number}") for number in range(MANY))]
    Made(tmp_path / "i", [archive(*members)])
    with pytest.raises(TreeError, match="links are more work"):
        Made(tmp_path / "i", [archive(*members)], Limits(entries=MANY + 10))


def test_paths_longer_than_linux_has_them_are_refused() -> None:
    tree = Tree(Limits(), lambda _content: None)
    tree.add(b"a/" + b"./" * 2047, Node(0o040755))
    with pytest.raises(TreeError, match="longer than 4096"):
        tree.add(b"a/" + b"./" * 2048, Node(0o040755))


def test_names_of_attributes_without_end() -> None:
    left_out = LeftOut()
    for number in range(3000):
        left_out.leave_out_xattr(b"trusted.%d" % number + b"x" * 1000)
    assert len(left_out.xattrs) == 1000
    assert max(map(len, left_out.xattrs)) == 255


def test_all_that_is_read_is_counted(tmp_path: Path) -> None:
    """Of a whiteout's content, too, and over all layers."""
    allowance = Allowance(3 << 20)
    for _ in range(3):
        stream = expanded(io.BytesIO(zstandard.compress(bytes(1 << 20))), allowance.take)
        assert len(stream.read(1 << 20)) == 1 << 20
    with pytest.raises(TooLarge, match=f"more than {3 << 20} bytes, unpacked"):
        expanded(io.BytesIO(b"one more"), allowance.take).read(100)


@pytest.mark.parametrize("where", ["in a file that is replaced", "behind the end"])
async def test_what_is_thrown_away_is_bounded_too(tmp_path: Path, where: str) -> None:
    path = tmp_path / "bomb.tar.zst"
    zeros = file("same", bytes(1 << 20))
    data = archive(*([zeros] * 10)) if where.startswith("in") else archive(zeros) + bytes(20 << 20)
    path.write_bytes(zstandard.compress(data))
    image = Image.from_tar(path, cache=tmp_path / "cache", limits=Limits(size=2 << 20, entries=20))
    if where.startswith("in"):
        with pytest.raises(ImageError, match=r"archives are more than \d+ bytes, unpacked"):
            await image.build()
    else:
        (await image.build()).close()  # of what is no layer nobody reads on


async def test_what_takes_too_long_ends(tmp_path: Path) -> None:
    """A mebibyte of headers is a tenth of a second of work, and compresses to nothing."""
    records = b"".join(b"%d %d=\n" % (len(b"%d" % n) + 5, n) for n in range(60_000, 99_999))[: 1 << 19]
    records = records[: records.rfind(b"\n") + 1]
    path = tmp_path / "slow.tar.zst"
    one = extended(b"x", records) + archive(file("a"))[:512]
    path.write_bytes(zstandard.compress(one * 500))
    image = Image.from_tar(path, cache=tmp_path / "cache", limits=Limits(seconds=0.1))
    async with asyncio.timeout(5 * HANGS):  # a second of a processor, which others may have as well
        with pytest.raises(ImageError, match=r"more than 0\.1 s of a processor") as failed:
            await image.build()
    assert "Limits(seconds=)" in str(failed.value)


@pytest.mark.parametrize("part", [b"[]", b"{}", b"1", b'"\\n"'])
def test_documents_of_more_values_than_one_has(part: bytes) -> None:
    """The program itself makes them out, in one go."""
    for number in (10_000, 200_000):
        text = b'{"architecture":"amd64","a":[' + b",".join([part] * number) + b"]}"
        if number < 100_000:
            assert parse_configuration(text).architecture == "amd64"
        else:
            with pytest.raises(DocumentError, match="more than 100000 values"):
                parse_configuration(text)


def test_headers_of_a_layout_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program itself looks at these."""
    monkeypatch.setattr(layouts, "_MOST_HEADERS", 1 << 20)
    path = tmp_path / "layout.tar"
    entry = extended(b"L", b"name" + bytes(100_000)) + archive(file("a"))[:512]
    path.write_bytes(archive(file("blob", bytes(4 << 20)))[: 512 + (4 << 20)] + entry * 5 + bytes(1024))
    FilesOfArchive(path)
    path.write_bytes(entry * 20 + bytes(1024))
    with pytest.raises(TarError, match="bytes of headers"):
        FilesOfArchive(path)


def test_members_of_a_layout_are_bounded_whatever_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "_MOST_FILES", 100)
    path = tmp_path / "layout.tar"
    path.write_bytes(archive(*([directory("d")] * 101)))
    with pytest.raises(TarError, match="more than 100 files"):
        FilesOfArchive(path)


def nested(path: Path, depth: int) -> None:
    """Directories in each other, of which paths would be too long to be named."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)


async def test_a_directory_that_a_guest_shares_is_looked_through_as_far_as_it_can_be_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the program, before anything is made: each level costs all above it again."""
    nested(tmp_path, DEEPEST + 50)
    opened = 0
    really = os.open

    def counted(*args: Any, **options: Any) -> int:
        nonlocal opened
        opened += 1
        return really(*args, **options)

    monkeypatch.setattr(os, "open", counted)
    with pytest.raises(ImageError, match="more than 256 directories in each other"):
        await Image.from_directory(tmp_path, cache=tmp_path / "cache").build()
    assert opened < (DEEPEST + 2) ** 2 // 2
    monkeypatch.undo()
    (tmp_path / "other").mkdir()
    nested(tmp_path / "other", DEEPEST)
    assert (await Image.from_directory(tmp_path / "other", cache=tmp_path / "cache").build()).size
    few = Limits(entries=DEEPEST - 1)
    with pytest.raises(ImageError, match="more entries than an image may have"):
        await Image.from_directory(tmp_path / "other", limits=few, cache=tmp_path / "cache").build()


def test_an_archive_is_told_by_little_work(tmp_path: Path) -> None:
    """In the program: a name in gzip's header is read byte by byte, and members without anything one by one."""
    path = tmp_path / "x"
    for content in (b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * (64 << 20), gzip.compress(b"") * 1_000_000):
        path.write_bytes(content)
        before = time.thread_time()
        assert kind_of(path) == "tar"
        assert time.thread_time() - before < 2


def test_an_archive_that_wants_more_memory_than_there_is_is_left_to_its_maker(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1536 << 20}]
    (tmp_path / "x").write_bytes(lzma.compress(b"hello", filters=filters))
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from aiovmm.rootfs.kinds import kind_of\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "print(kind_of(Path(sys.argv[1])))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "x")], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("tar\n", "")
