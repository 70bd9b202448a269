"""What is written is EROFS: erofs-utils, which share nothing with it, find every file, owner, mode, time and link."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiovmm.rootfs.tree import TreeError
from tests.rootfs.conftest import Made, Member, archive, content, directory, file, hardlink, needs_erofs, symlink

pytestmark = [needs_erofs, pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")]

SIZES = (0, 1, 2047, 2048, 2049, 4095, 4096, 4097, 6144, 6145, 8192, 70_000, 1 << 20)


def dumped(image: Path, path: str) -> str:
    """What dump.erofs tells of the inode at `path`."""
    return subprocess.run(["dump.erofs", f"--path={path}", image], capture_output=True, text=True, check=True).stdout


def mode_on_disk(image: Path, path: str) -> int:
    """i_mode, which stands four bytes into the inode."""
    number = int(re.search(r"NID: (\d+)", dumped(image, path))[1])  # type: ignore[index]
    data = image.read_bytes()
    metadata = int.from_bytes(data[1024 + 40 : 1024 + 44], "little") * 4096
    return int.from_bytes(data[metadata + number * 32 + 4 :][:2], "little")


def test_files_of_every_size_at_the_edges_of_blocks(tmp_path: Path) -> None:
    data = {f"f{size}": hashlib.shake_128(str(size).encode()).digest(size) for size in SIZES}
    made = Made(tmp_path / "i.erofs", [archive(*(file(name, text, mtime=77) for name, text in data.items()))])
    found = content(made.extracted())
    assert {name: entry[4] for name, entry in found.items()} == data
    assert all(entry[3] == 77 for entry in found.values())


def test_owners_modes_times_and_links(tmp_path: Path) -> None:
    made = Made(
        tmp_path / "i.erofs",
        [
            archive(
                directory("bin", uid=3, gid=4, mode=0o2755, mtime=1_000_000),
                file("bin/su", b"x" * 5000, mode=0o4755, uid=70_000, gid=4_000_000, mtime=1_700_000_000),
                hardlink("bin/other", "bin/su"),
                symlink("sbin", "bin"),
                symlink("long", "x" * 3000),
                ("pipe", {"type": tarfile.FIFOTYPE, "mode": 0o600}),
            )
        ],
    )
    found = content(made.extracted())
    su = (stat.S_IFREG | 0o755, 70_000, 4_000_000, 1_700_000_000, b"x" * 5000)
    for name in ("bin/su", "bin/other"):
        assert (found[name][0] & ~stat.S_ISUID, *found[name][1:5]) == su  # older programs lose that bit
    assert (
        mode_on_disk(made.path, "/bin/su") == stat.S_IFREG | 0o4755
    )  # unpacking, and dump.erofs, lose the highest bits
    assert "Links: 2" in dumped(made.path, "/bin/su")
    assert dumped(made.path, "/bin/other").splitlines()[1:] == dumped(made.path, "/bin/su").splitlines()[1:]
    assert mode_on_disk(made.path, "/bin") == stat.S_IFDIR | 0o2755
    assert found["bin"][:4] == (stat.S_IFDIR | 0o2755, 3, 4, 1_000_000)
    assert found["sbin"][4] == "bin"
    assert found["long"][4] == "x" * 3000
    assert stat.S_ISFIFO(found["pipe"][0])


@pytest.mark.parametrize("count", [0, 1, 100, 300, 5000])
def test_directories_of_many_blocks(tmp_path: Path, count: int) -> None:
    names = [f"{number:05}" + "n" * (number % 200) for number in range(count)]
    made = Made(tmp_path / "i.erofs", [archive(directory("d"), *(file(f"d/{name}") for name in names))])
    assert {name for name in content(made.extracted()) if name != "d"} == {f"d/{name}" for name in names}


def test_capabilities_and_users_attributes_are_kept_and_others_left_out(tmp_path: Path) -> None:
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    attributes = {
        "SCHILY.xattr.security.capability": capability.decode("latin-1"),
        "SCHILY.xattr.user.note": "hello",
        "SCHILY.xattr.trusted.overlay.redirect": "/elsewhere",
        "SCHILY.xattr.user.overlay.opaque": "y",
    }
    made = Made(tmp_path / "i.erofs", [archive(file("ping", b"x", pax_headers=attributes))])
    node = made.tree.find(b"ping")
    assert node is not None
    assert node.xattrs == {b"security.capability": capability, b"user.note": b"hello"}
    assert made.left_out.xattrs == {"trusted.overlay.redirect", "user.overlay.opaque"}
    assert content(made.extracted())["ping"][4] == b"x"
    assert "Xattr size: 64" in dumped(made.path, "/ping")  # 12 of header; entries of 4+10+20 and 4+4+5, padded


def test_attributes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TreeError, match="bytes of extended attributes"):
        Made(tmp_path / "i", [archive(file("a", pax_headers={"SCHILY.xattr.user.a": "x" * 5000}))])


def test_equal_trees_are_equal_bytes(tmp_path: Path) -> None:
    members: list[Member] = [directory("d"), file("d/a", b"1" * 9000), file("b", b"2"), symlink("c", "b")]
    one = Made(tmp_path / "1", [archive(*members)]).path.read_bytes()
    assert Made(tmp_path / "2", [archive(*members)]).path.read_bytes() == one


def test_space_of_what_later_layers_replace_is_used_again(tmp_path: Path) -> None:
    layers = [archive(file("big", bytes([number]) * (1 << 20))) for number in range(8)]
    made = Made(tmp_path / "i", layers)
    assert content(made.extracted())["big"][4] == b"\7" * (1 << 20)
    assert made.path.stat().st_size < 3 << 20


_NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..") and not name.startswith(".wh.") and len(name.encode()) < 200
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.tuples(_NAMES, _NAMES), st.binary(max_size=9000), max_size=40))
def test_any_names_and_contents(tmp_path_factory: pytest.TempPathFactory, files: dict[tuple[str, str], bytes]) -> None:
    folder = tmp_path_factory.mktemp("any")
    made = Made(folder / "i", [archive(*(file("/".join(path), data) for path, data in files.items()))])
    found = content(made.extracted())
    assert {name: entry[4] for name, entry in found.items() if stat.S_ISREG(entry[0])} == {
        "/".join(path): data for path, data in files.items()
    }
