"""The reader of tar archives, against Python's own writer, GNU tar, and damage."""

from __future__ import annotations

import io
import itertools
import subprocess
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiovmm.rootfs.streams import EXPANDING_ERRORS, expanded
from aiovmm.rootfs.tar import Member, TarError, TarReader
from tests.rootfs.conftest import archive, directory, file, hardlink, symlink


def read(data: bytes) -> list[tuple[Member, bytes]]:
    reader = TarReader(io.BytesIO(data).read)
    return [(member, b"".join(reader.content())) for member in reader]


_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=200)


@settings(max_examples=60, deadline=None)
@given(
    name=_TEXT,
    target=_TEXT,
    uid=st.integers(0, 2**32 - 1),
    mtime=st.integers(0, 2**40),
    mode=st.integers(0, 0o7777),
    data=st.binary(max_size=2000),
    form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_what_python_writes_is_read_back(
    name: str, target: str, uid: int, mtime: int, mode: int, data: bytes, form: int
) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        info = tarfile.TarInfo(name)
        info.uid, info.gid, info.mtime, info.mode, info.size = uid, uid, mtime, mode, len(data)
        tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, target
        tar.addfile(link)
    (member, content), (second, _) = read(out.getvalue())
    assert member.path == name.encode()
    assert (member.kind, content) in (("file", data), ("directory", b""))
    assert (member.kind == "directory") == name.endswith("/")
    assert (member.uid, member.gid, member.mtime, member.mode) == (uid, uid, mtime, mode)
    assert (second.kind, second.target) == ("symlink", target.encode())


@pytest.mark.parametrize("form", ["gnu", "pax", "ustar", "v7"])
def test_what_gnu_tar_writes_is_read(tmp_path: Path, form: str) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub/file").write_bytes(b"x" * 1234)
    (tree / "sub/link").symlink_to("file")
    (tree / "hard").hardlink_to(tree / "sub/file")
    data = subprocess.check_output(["tar", f"--format={form}", "-C", tree, "--sort=name", "-c", "."])
    found = {member.path.rstrip(b"/"): (member.kind, member.target, content) for member, content in read(data)}
    assert found[b"./sub"][0] == "directory"
    assert found[b"./sub/link"] == ("symlink", b"file", b"")
    assert {found[b"./hard"], found[b"./sub/file"]} == {("file", b"", b"x" * 1234), ("link", b"./hard", b"")}


WHOLE = archive(
    directory("d"), file("d/a", b"x" * 3000), symlink("l", "d"), hardlink("h", "d/a"), file("n" * 150, b"1")
)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
@example(124, 0x80)
def test_a_damaged_archive_is_read_or_refused(at: int, change: int) -> None:
    data = bytearray(WHOLE)
    data[at] ^= change
    with suppress(TarError):
        read(bytes(data))


@pytest.mark.parametrize("size", range(0, len(WHOLE.rstrip(b"\0")), 100))
def test_an_archive_that_is_cut_short_never_looks_whole(size: int) -> None:
    reader = TarReader(io.BytesIO(WHOLE[:size]).read)
    try:
        for _ in reader:
            pass
    except TarError:
        return
    assert not reader.ended


def test_a_damaged_header_is_not_the_end() -> None:
    """Python's tarfile ends there in silence."""
    data = bytearray(WHOLE)
    at = data.index(b"d/a\0")
    data[at + 1] ^= 1
    with pytest.raises(TarError, match=f"damaged header, or is no tar archive, at byte {at}"):
        read(bytes(data))


def test_what_is_no_archive_at_all_is_told_so() -> None:
    with pytest.raises(TarError, match="or is no tar archive, at byte 0"):
        read(b"root:x:0:0:root:/root:/bin/sh\n" * 100)


def test_a_header_that_claims_a_lot_is_refused_before_it_is_read() -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 40
    with pytest.raises(TarError, match="more than 1048576 bytes of extended headers"):
        read(info.tobuf(tarfile.GNU_FORMAT))


def extended(kind: bytes, data: bytes) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, len(data)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K", b"V"])
@pytest.mark.parametrize("data", [b"", b"10 path=x\n" * 50])
def test_headers_without_end_have_one(kind: bytes, data: bytes) -> None:
    """20 kB unpack to 200 MB of them, and these took 12 s in which nobody could end it."""
    endless = itertools.cycle(extended(kind, data))
    reader = TarReader(lambda size: bytes(itertools.islice(endless, size)))
    with pytest.raises(TarError, match="more than 1048576 bytes of extended headers"):
        next(iter(reader))
    assert reader.offset <= 2 << 20


def test_what_is_for_all_members_is_what_is_looked_at() -> None:
    """Else it grows with each of them: of a megabyte each, from as much of what is packed as makes nothing of it."""
    member = tarfile.TarInfo("y").tobuf()
    data = b"".join(extended(b"g", _records(at)) + member for at in range(0, 100_000, 20_000))
    reader = TarReader(io.BytesIO(extended(b"g", b"10 path=z\n") + data).read)
    assert [found.path for found in reader] == [b"z"] * 5
    assert len(reader._global) == 1
    with pytest.raises(TarError, match="extended attributes for all members"):
        read(extended(b"g", b"26 SCHILY.xattr.user.a=bc\n") + member)


def _records(first: int) -> bytes:
    return b"".join(b"14 k%07d=v\n" % n for n in range(first, first + 20_000))


@pytest.mark.parametrize("size", [1 << 62, 1 << 63, 1 << 80])
def test_a_size_that_no_file_has_is_refused(size: int) -> None:
    header = bytearray(tarfile.TarInfo("x").tobuf())
    header[124:136] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(TarError, match=f"has a member of {size} bytes"):
        read(bytes(header))


@pytest.mark.parametrize(
    "records", [b"5 a=\n", b"99 path=x\n", b"x path=x\n", b"0 path=x\n", b"10 path-x\n", b"10 path=xy"]
)
def test_damaged_records_are_refused(records: bytes) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    data = info.tobuf() + records.ljust(512, b"\0") + tarfile.TarInfo("y").tobuf()
    if records == b"5 a=\n":
        assert [member.path for member, _ in read(data)] == [b"y"]
    else:
        with pytest.raises(TarError, match="damaged extended header"):
            read(data)


def test_sparse_members_are_refused_by_name(tmp_path: Path) -> None:
    with open(tmp_path / "holes", "wb") as out:
        out.truncate(1 << 20)
    for form in ("gnu", "pax"):
        data = subprocess.check_output(["tar", f"--format={form}", "--sparse", "-C", tmp_path, "-c", "holes"])
        with pytest.raises(TarError, match="without --sparse"):
            read(data)


@pytest.mark.parametrize("program", ["gzip", "zstd", "xz", "bzip2"])
def test_formats_are_found_out_and_damage_is_told(program: str) -> None:
    packed = subprocess.run([program, "-c"], input=WHOLE, capture_output=True, check=True).stdout
    whole = b""
    stream = expanded(io.BytesIO(packed + (packed if program != "bzip2" else b"")))
    while part := stream.read(1000):
        whole += part
    assert whole == WHOLE * (2 if program != "bzip2" else 1)
    broken = bytearray(packed)
    broken[len(broken) // 2] ^= 0xFF
    stream = expanded(io.BytesIO(bytes(broken)))
    with pytest.raises((*EXPANDING_ERRORS, OSError)):
        list(iter(lambda: stream.read(1000), b""))
