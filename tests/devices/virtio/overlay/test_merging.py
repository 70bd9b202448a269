"""Commit, rebase and copies: what a guest sees is what it was, also when they are killed at any moment."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiovmm.devices.virtio.blk import DiskImage
from aiovmm.devices.virtio.blk.extents import Extent
from aiovmm.devices.virtio.blk.overlay import merging
from aiovmm.devices.virtio.blk.overlay.chain import open_base
from aiovmm.devices.virtio.blk.overlay.copying import copy_image, pieces, read_at, write_all
from aiovmm.devices.virtio.blk.overlay.header import Header
from aiovmm.devices.virtio.blk.overlay.image import OverlayImage
from aiovmm.devices.virtio.blk.overlay.layer import Layer
from aiovmm.devices.virtio.blk.protocol import SECTOR
from aiovmm.errors import HostError, ImageError
from aiovmm.native import lib
from tests.devices.virtio.overlay.test_overlay import folder

KB = 1024


def view(image: DiskImage) -> bytes:
    layer = image.top_layer or Layer(image.fd, image.size)
    parts = []
    for at, size, depth in pieces(layer, image.sectors * SECTOR):
        while size:
            parts.append(read_at(layer, at, size, depth))
            at, size = at + len(parts[-1]), size - len(parts[-1])
    return b"".join(parts)


def seen(base: Path, overlay: Path) -> bytes:
    image = OverlayImage.open_over(open_base(base), overlay, readonly=True)
    try:
        return view(image)
    finally:
        image.close()


def tried(base: Path, overlay: Path) -> bytes | ImageError:
    """What is seen, or why nothing is."""
    try:
        return seen(base, overlay)
    except ImageError as exc:
        return exc


def change(image: OverlayImage, rand: random.Random) -> None:
    """As a guest might: whole clusters, parts, zeros."""
    for _ in range(rand.randint(1, 8)):
        at = rand.randrange(image.sectors) * SECTOR
        size = min(rand.randint(1, 40) * SECTOR, image.size - at)
        if rand.random() < 0.4:
            assert image.write_zeroes(Extent(at, size, True)) == 0
            continue
        native = image.top_layer.native
        for edge in (at, at + size - 1):
            assert lib.avmm_blk_layer_bring(native, edge, 0, 0) == 0
        write_all(image.fd, rand.randbytes(size), native.data_at + at)
        lib.avmm_blk_layer_mark(native, at, at + size)
    if rand.random() < 0.4:
        image.resize(rand.randint(1, 400) * SECTOR)


def make(place: Path, rand: random.Random) -> tuple[Path, Path, bytes]:
    base, top = place / "base", place / "top"
    base.write_bytes(rand.randbytes(rand.choice([64 * KB, 65 * KB - 100, 3 * KB, 100 * KB])))
    image = OverlayImage.open_over(open_base(base), top)
    change(image, rand)
    content = view(image)
    image.close()
    return base, top, content


DOOMED = """
import os, signal, sys
from pathlib import Path
from aiovmm.devices.virtio.blk.overlay import merging

left = int(sys.argv[1])

def wrap(real):
    def call(*arguments):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)
    return call

for name in ("pwrite", "pwritev", "ftruncate", "fsync", "fdatasync"):
    setattr(os, name, wrap(getattr(os, name)))
getattr(merging, sys.argv[2])(*map(Path, sys.argv[3:]))
"""


def killed(after: int, name: str, *files: Path) -> None:
    """Have a program commit or rebase, which is killed when it has made so many system calls that change a file."""
    command = [sys.executable, "-c", DOOMED, str(after), name, *map(str, files)]
    done = subprocess.run(command, check=False, timeout=60, capture_output=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1 << 32), after=st.integers(0, 25))
def test_a_commit_that_is_killed_is_finished_by_the_next(seed: int, after: int) -> None:
    rand = random.Random(seed)
    with folder() as place:
        base, top, content = make(place, rand)
        killed(after, "commit", top, base)
        found = tried(base, top)
        assert found == content or f"`aiovmm disk commit {top} --base {base}` finishes" in str(found)
        merging.commit(top, base)
        assert seen(base, top) == content
        assert base.read_bytes().ljust(len(content), b"\0") == content
        image = OverlayImage.open_over(open_base(base), top)
        assert not any(image.top_layer.pages), "it is not empty"
        change(image, rand)  # and goes on
        content = view(image)
        image.close()
        assert seen(base, top) == content


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1 << 32), after=st.integers(0, 25), alike=st.booleans())
def test_a_rebase_changes_nothing_that_is_seen(seed: int, after: int, alike: bool) -> None:
    rand = random.Random(seed)
    with folder() as place:
        base, top, content = make(place, rand)
        other = place / "other"
        data = bytearray(base.read_bytes() if alike else rand.randbytes(rand.choice([10 * KB, 64 * KB, 200 * KB])))
        data[: SECTOR // 2] = bytes(min(SECTOR // 2, len(data)))
        other.write_bytes(data)
        killed(after, "rebase", top, base, other)
        if tried(base, top) != content:
            assert "does not fit" in str(tried(base, top))
        else:
            merging.rebase(top, base, other)
        assert seen(other, top) == content
        assert base.exists()


@pytest.mark.parametrize("name", ["commit", "rebase"])
def test_a_disk_of_which_a_guest_has_trimmed_each_other_cluster_takes_no_memory_for_that(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs the guest no room: of a disk of a tebibyte a list of them took tens of GiB."""
    base, other, top = (tmp_path / name for name in ("base", "other", "top"))
    for path in (base, other):
        path.touch()
        os.truncate(path, 128 << 20)
    image = OverlayImage.open_over(open_base(base), top)
    cluster = 1 << int(image.top_layer.native.shift)
    for at in range(0, image.size, 2 * cluster):
        lib.avmm_blk_layer_mark(image.top_layer.native, at, at + cluster)
    image.close()
    peaks = []
    put_header = (
        OverlayImage.put_header
    )  # the last word, when all of the disk has been seen; the map is emptied after it

    def put(image: OverlayImage, header: Header) -> None:
        peaks.append(tracemalloc.get_traced_memory()[1])
        put_header(image, header)

    monkeypatch.setattr(OverlayImage, "put_header", put)
    tracemalloc.start()
    try:
        merging.commit(top, base) if name == "commit" else merging.rebase(top, base, other)
    finally:
        tracemalloc.stop()
    assert peaks[-1] < 2 << 20


def test_the_word_of_the_user_is_taken(tmp_path: Path) -> None:
    base, top, content = make(tmp_path, random.Random(5))
    copy = tmp_path / "copy"
    copy.write_bytes(base.read_bytes())
    with pytest.raises(ImageError, match="does not fit its base"):
        seen(copy, top)
    merging.adopt(top, copy)
    assert seen(copy, top) == content


def test_commit_wants_the_base_for_itself(tmp_path: Path) -> None:
    base, top, content = make(tmp_path, random.Random(6))
    reader = open_base(base)
    with pytest.raises(HostError, match="locking"):
        merging.commit(top, base)
    reader.release()
    running = OverlayImage.open_over(open_base(base), top)
    with pytest.raises(HostError, match="locking"):
        merging.commit(top, base)
    running.close()
    assert seen(base, top) == content


def test_a_commit_makes_other_overlays_of_the_base_unfit(tmp_path: Path) -> None:
    base, top, _ = make(tmp_path, random.Random(7))
    OverlayImage.open_over(open_base(base), tmp_path / "other").close()
    merging.commit(top, base)
    with pytest.raises(ImageError, match="does not fit its base"):
        OverlayImage.open_over(open_base(base), tmp_path / "other")


def test_a_base_that_is_an_overlay_is_not_committed_to(tmp_path: Path) -> None:
    _, top, _ = make(tmp_path, random.Random(8))
    OverlayImage.open_over(open_base(top, backing_files=True), tmp_path / "above").close()
    with pytest.raises(ImageError, match="aiovmm disk copy"):
        merging.commit(tmp_path / "above", top)


def test_copies_are_sparse_whole_and_never_over_another_file(tmp_path: Path) -> None:
    base, top, content = make(tmp_path, random.Random(9))
    image = OverlayImage.open_over(open_base(base), top, readonly=True)
    assert not copy_image(image, tmp_path / "flat")
    assert (tmp_path / "flat").read_bytes() == content
    with pytest.raises(HostError, match="File exists"):
        copy_image(image, tmp_path / "flat")
    image.close()
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"x" * 4096)
    below = open_base(sparse)
    shared = copy_image(below.image, tmp_path / "copy")
    below.release()
    assert (tmp_path / "copy").read_bytes() == sparse.read_bytes()
    assert shared or (tmp_path / "copy").stat().st_blocks * 512 < 1 << 20
    assert sorted(os.listdir(tmp_path)) == ["base", "copy", "flat", "sparse", "top"]


def test_blocks_are_shared_where_the_file_system_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none here that can, so the kernel's part is played: FICLONE of the source on the copy."""
    base = tmp_path / "base"
    base.write_bytes(b"x" * 8192)
    asked = []

    def ioctl(fd: int, request: int, source: int) -> int:
        asked.append((os.readlink(f"/proc/self/fd/{source}"), request))
        os.pwrite(fd, b"cloned", 0)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    below = open_base(base)
    assert copy_image(below.image, tmp_path / "copy")
    below.release()
    assert asked == [(str(base), 0x40049409)]
    assert (tmp_path / "copy").read_bytes() == b"cloned"
