"""Layers onto each other as the OCI specification has it, and layers that were made to do harm: all of it stays in the tree."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from aiovmm.rootfs.blocks import TooLarge
from aiovmm.rootfs.limits import Limits
from aiovmm.rootfs.tree import TreeError
from tests.rootfs.conftest import Made, Member, archive, directory, file, hardlink, symlink


def paths(tmp_path: Path, *layers: bytes) -> set[str]:
    return Made(tmp_path / "i", layers).paths()


BASE = archive(directory("d"), file("d/a", b"1"), file("d/b", b"2"), directory("d/e"), file("d/e/f"), file("top"))


def test_a_whiteout_takes_away_one_name(tmp_path: Path) -> None:
    assert paths(tmp_path, BASE, archive(file("d/.wh.a"), file(".wh.top"))) == {"d", "d/b", "d/e", "d/e/f"}


def test_a_whiteout_takes_away_a_directory(tmp_path: Path) -> None:
    assert paths(tmp_path, BASE, archive(file(".wh.d"))) == {"top"}


@pytest.mark.parametrize("first", [True, False], ids=["opaque first", "opaque last"])
def test_an_opaque_directory_has_only_its_own(tmp_path: Path, first: bool) -> None:
    members = [file("d/.wh..wh..opq"), file("d/new"), file("d/e/g")]
    layer = archive(*(members if first else members[::-1]))
    assert paths(tmp_path, BASE, layer) == {"d", "d/new", "d/e", "d/e/g", "top"}


@pytest.mark.parametrize("first", [True, False], ids=["whiteout first", "whiteout last"])
def test_a_whiteout_is_for_older_layers_alone(tmp_path: Path, first: bool) -> None:
    members = [file("d/.wh.e"), file("d/e/g")]
    layer = archive(*(members if first else members[::-1]))
    assert paths(tmp_path, BASE, layer) == {"d", "d/a", "d/b", "d/e", "d/e/g", "top"}


def test_a_directory_said_again_keeps_what_is_in_it(tmp_path: Path) -> None:
    made = Made(tmp_path / "i", [BASE, archive(directory("d", mode=0o700, uid=5))])
    node = made.tree.find(b"d")
    assert node is not None
    assert (node.mode & 0o7777, node.uid, sorted(node.children)) == (0o700, 5, [b"a", b"b", b"e"])


def test_a_file_in_the_place_of_a_directory_and_back(tmp_path: Path) -> None:
    assert paths(tmp_path, BASE, archive(file("d"))) == {"d", "top"}
    assert paths(tmp_path, BASE, archive(file("d")), archive(directory("d"), file("d/x"))) == {"d", "d/x", "top"}


def test_a_path_goes_through_links_of_older_layers(tmp_path: Path) -> None:
    base = archive(directory("usr/lib"), symlink("lib", "usr/lib"), symlink("abs", "/usr/../usr/lib"))
    assert paths(tmp_path, base, archive(file("lib/x"), file("abs/y"))) == {
        "usr",
        "usr/lib",
        "usr/lib/x",
        "usr/lib/y",
        "lib",
        "abs",
    }


def test_a_link_stays_one_file_when_its_first_name_goes(tmp_path: Path) -> None:
    made = Made(tmp_path / "i", [archive(file("a", b"x" * 5000), hardlink("b", "a")), archive(file(".wh.a"))])
    node = made.tree.find(b"b")
    assert node is not None
    assert (made.paths(), node.names, node.content.size) == ({"b"}, 1, 5000)


@pytest.mark.parametrize("gone", ["old", "d/.wh..wh..opq"])
@pytest.mark.parametrize("first", [True, False], ids=["whiteout first", "whiteout last"])
def test_what_has_another_name_now_loses_the_old_one(tmp_path: Path, gone: str, first: bool) -> None:
    """It is the name that is an older layer's, and not the file."""
    base = archive(directory("d"), file("d/old", b"x" * 5000), file("keep", b"y"), hardlink("d/too", "d/old"))
    whiteouts = [file(gone)] if gone.startswith("d/") else [file("d/.wh.old"), file("d/.wh.too")]
    names = [hardlink("new", "d/old" if not first else "new0")]
    layer: list[Member] = [hardlink("new0", "d/old"), *whiteouts, *names] if first else [*names, *whiteouts]
    made = Made(tmp_path / "i", [base, archive(*layer)])
    assert made.paths() == {"d", "keep", "new"} | ({"new0"} if first else set())
    node = made.tree.find(b"new")
    assert node is not None
    assert (node.names, node.content.size) == (1 + first, 5000)


def test_a_name_that_is_said_again_is_the_new_layers(tmp_path: Path) -> None:
    base = archive(directory("d"), file("d/a", b"x"), hardlink("d/b", "d/a"))
    layer = archive(hardlink("d/b", "d/a"), file("d/.wh..wh..opq"))
    assert paths(tmp_path, base, layer) == {"d", "d/b"}


def test_a_device_is_in_the_place_of_what_was_there(tmp_path: Path) -> None:
    device = ("a", {"type": tarfile.CHRTYPE, "devmajor": 1})
    made = Made(tmp_path / "i", [archive(file("a", b"x"), file("b")), archive(device)])
    assert (made.paths(), made.left_out.devices) == ({"b"}, 1)
    made = Made(tmp_path / "j", [archive(device), archive(file("a", b"x"))])
    assert (made.paths(), made.left_out.devices) == ({"a"}, 0)


def test_other_names_of_an_older_layers_device(tmp_path: Path) -> None:
    """Also by a path that goes through a link."""
    base = archive(directory("usr/dev"), symlink("dev", "usr/dev"), ("dev/a", {"type": tarfile.BLKTYPE}))
    made = Made(tmp_path / "i", [base, archive(hardlink("b", "usr/dev/a"), hardlink("c", "b"), file("d"))])
    assert (made.paths(), made.left_out.devices) == ({"usr", "usr/dev", "dev", "d"}, 3)


def test_what_aufs_kept_of_hard_links(tmp_path: Path) -> None:
    """Their content is in a directory of its own, which is no part of the image."""
    layer = archive(directory(".wh..wh.plnk"), file(".wh..wh.plnk/7.8", b"x" * 99), hardlink("a", ".wh..wh.plnk/7.8"))
    made = Made(tmp_path / "i", [layer, archive(file(".wh..wh.aufs"), file("b"))])
    assert made.paths() == {"a", "b"}
    node = made.tree.find(b"a")
    assert node is not None
    assert (node.names, node.content.size) == (1, 99)


# -- hostile ones


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/../x", "a/..", ".."])
def test_a_path_out_of_the_root_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(TreeError, match="leads out of the root"):
        paths(tmp_path, archive(file(path)))
    with pytest.raises(TreeError, match="leads out of the root"):
        paths(tmp_path, archive(file("a"), hardlink("b", path)))


def test_links_out_of_the_root_lead_back_to_it(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    layer = archive(symlink("up", "../../../.."), symlink("abs", str(outside)), file("up/etc/x"), file("abs/y"))
    found = paths(tmp_path, layer)
    assert "etc/x" in found
    assert f"{str(outside)[1:]}/y" in found
    assert list(outside.iterdir()) == []


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    with pytest.raises(TreeError, match="more than 40 symbolic links"):
        paths(tmp_path, archive(symlink("a", "b"), symlink("b", "a"), file("a/x")))


def test_links_that_multiply_end(tmp_path: Path) -> None:
    members = [symlink(f"l{n}", "/".join([f"l{n + 1}/.."] * 300)) for n in range(30)]
    with pytest.raises(TreeError, match="more than 40 symbolic links"):
        paths(tmp_path, archive(directory("l30"), *members, file("l0/x")))


@pytest.mark.parametrize("target", ["nowhere", "d"])
def test_a_hard_link_to_nothing_or_to_a_directory_is_refused(tmp_path: Path, target: str) -> None:
    with pytest.raises(TreeError, match=r"not there|name for a directory"):
        paths(tmp_path, archive(directory("d"), hardlink("x", target)))


def test_a_hard_link_reaches_nothing_of_the_host(tmp_path: Path) -> None:
    with pytest.raises(TreeError, match="not there"):
        paths(tmp_path, archive(hardlink("x", "/etc/passwd")))


def test_device_nodes_are_left_out_and_counted(tmp_path: Path) -> None:
    """0:0 would be an overlay's whiteout; 8:0 the guest's disk for who can write there."""
    nodes = [
        (f"n{n}", {"type": kind, "devmajor": n, "devminor": 0})
        for n, kind in ((0, tarfile.CHRTYPE), (8, tarfile.BLKTYPE))
    ]
    made = Made(tmp_path / "i", [archive(file("a"), *nodes)])
    assert (made.paths(), made.left_out.devices) == ({"a"}, 2)


@pytest.mark.parametrize("name", [".wh.", ".wh...", ".wh..", "d/.wh.", "d/.wh..", "d/.wh...", "d/e/.wh..."])
def test_a_whiteout_of_nothing_or_of_where_it_is(tmp_path: Path, name: str) -> None:
    with pytest.raises(TreeError, match="a whiteout names nothing"):
        paths(tmp_path, BASE, archive(file(name)))


@pytest.mark.parametrize("path", [".wh.d/x", "d/.wh.e/.wh.f", "d/.wh..wh.plnk/x", "./.wh.d/y/z"])
def test_what_is_below_a_whiteout_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(TreeError, match="is below a whiteout"):
        paths(tmp_path, BASE, archive(file(path)))
    assert Made(tmp_path / "t", [archive(file(path))], is_layer=False).paths() >= {path.removeprefix("./")}


def test_deep_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TreeError, match="more than 256 directories"):
        paths(tmp_path, archive(file("/".join("d" * 300))))


def test_too_many_entries_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TreeError, match="more than 10 entries"):
        Made(tmp_path / "i", [archive(*(file(str(n)) for n in range(11)))], Limits(entries=10))


def test_too_many_bytes_are_refused_before_they_are_read(tmp_path: Path) -> None:
    with pytest.raises(TooLarge, match="more than 1000 bytes"):
        Made(tmp_path / "i", [archive(file("a", b"x" * 600), file("b", b"x" * 401))], Limits(size=1000))
    Made(
        tmp_path / "i",
        [archive(file("a", b"x" * 600)), archive(file(".wh.a"), file("b", b"x" * 900))],
        Limits(size=1000),
    )


def test_names_that_are_no_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    assert paths(tmp_path, archive(file(name))) == {name}


@pytest.mark.parametrize("attribute", [{"user." + "n" * 300: "x"}, {"user.large": "x" * 70000}])
def test_attributes_longer_than_there_are(tmp_path: Path, attribute: dict[str, str]) -> None:
    headers = {f"SCHILY.xattr.{name}": value for name, value in attribute.items()}
    with pytest.raises(TreeError, match="longer than Linux has them"):
        Made(tmp_path / "image", [archive(file("a", pax_headers=headers))])


def test_other_names_of_a_device_are_left_out_with_it(tmp_path: Path) -> None:
    device = ("./dev/tty", {"type": tarfile.CHRTYPE, "devmajor": 5})
    made = Made(tmp_path / "image", [archive(directory("dev"), device, hardlink("dev/other", "dev/tty"), file("a"))])
    assert (made.paths(), made.left_out.devices) == ({"dev", "a"}, 2)
    again: list[Member] = [directory("dev"), device, file("dev/tty", b"x"), hardlink("b", "dev/tty")]
    assert Made(tmp_path / "again", [archive(*again)]).paths() == {"dev", "dev/tty", "b"}
