"""The cache of unpacked kernels: used when it is sound, redone when it is not, never in the way."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pwd
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aiovmm.architecture import AARCH64
from aiovmm.boot import cache as cached
from aiovmm.boot import unpack
from aiovmm.boot.cache import default_directory
from aiovmm.boot.source import BytesSource, FileSource
from aiovmm.boot.x86_64 import load_kernel
from aiovmm.errors import HostError, ImageError, UsageError
from aiovmm.image import debian_busybox
from aiovmm.memory import GuestMemory
from tests.boot.images import CODE, KERNEL_ADDRESS, bzimage, elf, payload
from tests.sweeping import sweeps_before_it_is_locked


@pytest.fixture
def path(put: Callable[..., Path]) -> Path:
    path = put(bzimage(payload(elf(), "zstd")))
    os.utime(path, (1_000_000_000, 1_000_000_000))
    return path


@pytest.fixture
def unpacked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every unpacking."""
    calls: list[int] = []
    real = unpack.unpack

    def counting(payload: bytes) -> bytes:
        calls.append(len(payload))
        return real(payload)

    monkeypatch.setattr(unpack, "unpack", counting)
    return calls


def loads_right(path: Path, cache: Path) -> bool:
    memory = GuestMemory.create([(0, 32 << 20)])
    load_kernel(path, cache=cache).load_into(memory)
    try:
        return memory.read(KERNEL_ADDRESS, len(CODE)) == CODE
    finally:
        memory.close()


def test_second_start_does_not_unpack(path: Path, cache: Path, unpacked: list[int]) -> None:
    assert loads_right(path, cache)
    assert loads_right(path, cache)
    assert len(unpacked) == 1


def test_same_content_under_another_name_is_found(path: Path, cache: Path, unpacked: list[int], tmp_path: Path) -> None:
    load_kernel(path, cache=cache)
    shutil.copyfile(path, tmp_path / "copy")
    assert loads_right(tmp_path / "copy", cache)
    assert len(unpacked) == 1


def test_file_replaced_by_another_kernel_of_the_same_size_and_time(path: Path, cache: Path) -> None:
    load_kernel(path, cache=cache)
    other = bytes(reversed(CODE))
    data = bytearray(bzimage(payload(elf([(KERNEL_ADDRESS, other, len(other))]), "none")))
    load_kernel(path, cache=cache)
    size = path.stat().st_size
    path.write_bytes(data + bytes(max(0, size - len(data))))
    os.utime(path, (1_000_000_000, 1_000_000_000))
    memory = GuestMemory.create([(0, 32 << 20)])
    load_kernel(path, cache=cache).load_into(memory)
    assert memory.read(KERNEL_ADDRESS, len(other)) == other
    memory.close()


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "unpacked file changed": lambda vmlinux, meta: vmlinux.write_bytes(vmlinux.read_bytes().replace(CODE, CODE[::-1])),
    "unpacked file cut": lambda vmlinux, meta: os.truncate(vmlinux, 5000),
    "unpacked file empty": lambda vmlinux, meta: os.truncate(vmlinux, 0),
    "unpacked file gone": lambda vmlinux, meta: vmlinux.unlink(),
    "record cut": lambda vmlinux, meta: os.truncate(meta, 20),
    "record of another format": lambda vmlinux, meta: meta.write_text(json.dumps({"format": 99})),
    "record is not a record": lambda vmlinux, meta: meta.write_text("[1, 2]"),
    "record gone": lambda vmlinux, meta: meta.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_entry_is_made_again(damage: str, path: Path, cache: Path, unpacked: list[int]) -> None:
    load_kernel(path, cache=cache)
    (vmlinux,), (meta,) = cache.glob("*.vmlinux"), cache.glob("*.json")
    DAMAGES[damage](vmlinux, meta)
    assert loads_right(path, cache)
    assert len(unpacked) == 2
    assert loads_right(path, cache)
    assert len(unpacked) == 2, "and kept again"


def test_cache_that_was_copied_elsewhere_is_checked_and_used(
    path: Path, cache: Path, unpacked: list[int], tmp_path: Path
) -> None:
    load_kernel(path, cache=cache)
    shutil.copytree(cache, tmp_path / "moved")
    assert loads_right(path, tmp_path / "moved")
    assert len(unpacked) == 1


def test_starts_at_once_with_an_empty_cache(path: Path, cache: Path, unpacked: list[int]) -> None:
    """Each has examined the kernel before another stores it: whoever wins, every guest gets its bytes, unpacked once."""
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda _: loads_right(path, cache), range(16)))
    assert len(unpacked) == 1


REPLACED: dict[str, Callable[[Path], object]] = {
    "stored again by a process that did not wait": lambda file: _put_again(file),
    "deleted": lambda file: file.unlink(),
    "damaged": lambda file: file.write_bytes(b"x"),
    "its directory deleted": lambda file: shutil.rmtree(file.parent),
}


def _put_again(file: Path) -> None:
    shutil.copyfile(file, file.with_suffix(".new"))
    os.replace(file.with_suffix(".new"), file)


@pytest.mark.parametrize("how", REPLACED)
def test_the_cache_may_change_between_examining_and_loading(how: str, path: Path, cache: Path) -> None:
    image = load_kernel(path, cache=cache)
    (file,) = cache.glob("*.vmlinux")
    REPLACED[how](file)
    memory = GuestMemory.create([(0, 32 << 20)])
    try:
        for fresh in (True, False):  # a start, then a guest's reset
            image.load_into(memory, fresh=fresh)
            assert memory.read(KERNEL_ADDRESS, len(CODE)) == CODE
    finally:
        memory.close()


def test_a_kernel_that_is_nowhere_any_more_is_said_to_have_changed(path: Path, cache: Path) -> None:
    image = load_kernel(path, cache=cache)
    (file,) = cache.glob("*.vmlinux")
    file.unlink()
    other = bytes(reversed(CODE))
    path.write_bytes(bzimage(payload(elf([(KERNEL_ADDRESS, other, len(other))]), "zstd")))
    memory = GuestMemory.create([(0, 32 << 20)])
    with pytest.raises(ImageError, match="changed after it was examined"):
        image.load_into(memory)
    memory.close()


def test_a_disk_that_fails_as_a_kernel_is_unpacked_again_is_told_of(
    path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a reset, of one whose cache entry is gone."""
    image = load_kernel(path, cache=cache)
    shutil.rmtree(cache)

    def fails(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", fails)
    memory = GuestMemory.create([(0, 32 << 20)])
    with pytest.raises(HostError, match="its disk or server fails"):
        image.load_into(memory)
    memory.close()


def test_cache_that_cannot_be_written(path: Path, tmp_path: Path, unpacked: list[int]) -> None:
    (tmp_path / "file").write_bytes(b"")
    image = load_kernel(path, cache=tmp_path / "file" / "cache")
    assert isinstance(image.source, BytesSource)
    assert loads_right(path, tmp_path / "file" / "cache")
    assert len(unpacked) == 2


def test_nothing_temporary_is_left(path: Path, cache: Path) -> None:
    assert isinstance(load_kernel(path, cache=cache).source, FileSource)
    assert not [p for p in cache.rglob("*") if p.name.startswith(".tmp")]


def test_the_newest_stay(put: Callable[..., Path], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all that was ever booted, and of the shortcuts to it."""
    monkeypatch.setattr(cached, "KEPT", 2)
    monkeypatch.setattr(cached, "_SHORTCUTS", 3)
    images = []
    for number in range(5):
        packed = put(bzimage(payload(elf([(KERNEL_ADDRESS, b"%d" % number * 200, 4096)]), "gzip")), f"kernel{number}")
        os.utime(packed, (1_000_000_000, 1_000_000_000))
        monkeypatch.setattr(cached, "_SETTLED_NS", -(10**12))  # as if it had been there for long
        images.append(load_kernel(packed, cache=cache))
        for file in cache.rglob("*"):
            back = file.stat().st_mtime_ns - 10**9
            os.utime(file, ns=(back, back))
    kept = [Path(image.source.path) for image in images if isinstance(image.source, FileSource)][-2:]
    assert {file.stem for file in cache.iterdir() if file.is_file()} == {path.stem for path in kept}
    assert len(list((cache / "by-stat").iterdir())) == 3
    memory = GuestMemory.create([(0, 32 << 20)])
    images[0].load_into(memory)  # a guest that has it is reset
    assert memory.read(KERNEL_ADDRESS, 3) == b"000"


def test_what_killed_writers_have_left_goes_and_what_is_being_written_stays(path: Path, cache: Path) -> None:
    """Each is as large as a kernel, and hidden."""
    cache.mkdir()
    for name in (".tmp-left", ".tmp-written"):
        (cache / name).write_bytes(bytes(4096))
    with open(cache / ".tmp-written", "rb") as written:
        fcntl.flock(written, fcntl.LOCK_EX)
        assert isinstance(load_kernel(path, cache=cache).source, FileSource)
    assert [found for found in cache.rglob("*") if found.name.startswith(".tmp")] == [cache / ".tmp-written"]


def test_one_that_was_swept_away_before_it_was_locked_is_begun_again(
    path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept = sweeps_before_it_is_locked(monkeypatch, os.unlink)
    assert isinstance(load_kernel(path, cache=cache).source, FileSource)
    assert swept


def test_file_just_written_is_hashed_again_next_time(put: Callable[..., Path], cache: Path) -> None:
    """Its content could change once more within the granularity of its times."""
    load_kernel(put(bzimage(payload(elf(), "gzip"))), cache=cache)
    assert not (cache / "by-stat").exists()


@pytest.mark.parametrize(
    ("xdg", "expected"),
    [
        ("/x/cache", "/x/cache/aiovmm/kernels"),
        ("", "/home/u/.cache/aiovmm/kernels"),
        ("rel", "/home/u/.cache/aiovmm/kernels"),
    ],
)
def test_default_directory(xdg: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """XDG Base Directory Specification 0.8: a relative path is to be ignored."""
    monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    monkeypatch.setenv("HOME", "/home/u")
    assert str(default_directory()) == expected


@pytest.mark.parametrize("home", [None, "", "relative", "~"])
def test_a_user_without_a_home_keeps_nothing(
    home: str | None, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither HOME nor an entry in the user database, as in many containers: nothing is written where he happens to stand."""

    def unknown(uid: int) -> object:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    if home is not None:
        monkeypatch.setenv("HOME", home)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    assert isinstance(load_kernel(path).source, BytesSource)
    with pytest.raises(UsageError, match="XDG_CACHE_HOME"):
        debian_busybox(arch=AARCH64)
    assert list(work.iterdir()) == []
