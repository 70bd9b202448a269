"""What is kept for later: the newest stay, with all that is theirs."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from aiovmm.image import KernelFiles
from aiovmm.runtime.newest import keep_newest
from aiovmm.sandboxes import kernel


def put(path: Path, written: int) -> Path:
    path.write_bytes(b"x")
    os.utime(path, (written, written))
    return path


def test_the_oldest_go_and_what_is_hidden_or_no_file_stays(tmp_path: Path) -> None:
    for number in range(4):
        put(tmp_path / f"{number}.one", number)
    put(tmp_path / "0.two", 10)  # so 0 is the newest
    put(tmp_path / ".begun", 0)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    keep_newest(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == [".begun", "0.one", "0.two", "3.one", "folder", "link"]
    keep_newest(tmp_path, 2)
    assert len(os.listdir(tmp_path)) == 6


def test_of_many_kernels_the_latest_used_have_their_initramfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernel, "debian_busybox", lambda: put(tmp_path / "busybox", 1))
    monkeypatch.setattr(kernel, "agent_binary", lambda: tmp_path / "busybox")
    built: list[object] = []

    def build(*, modules: object, **_: object) -> SimpleNamespace:
        built.append(modules)
        return SimpleNamespace(data=b"cpio")

    monkeypatch.setattr(kernel, "build_initramfs", build)
    monkeypatch.setattr(kernel, "_KEPT", 2)
    files = [KernelFiles(tmp_path, put(tmp_path / f"modules{number}", number), "1.0") for number in range(3)]
    made = []
    for one in files:
        made.append(kernel.sandbox_initramfs(one))
        put(made[-1], len(made))
        kernel.sandbox_initramfs(files[0])  # it is used all the time
    assert sorted((tmp_path / "aiovmm" / "initramfs").iterdir()) == sorted([made[0], made[2]])
    assert built == [one.modules for one in files]


def test_what_another_removes_meanwhile_or_nobody_can_remove_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        put(tmp_path / str(number), number)
    look = Path.lstat
    monkeypatch.setattr(Path, "lstat", lambda path: look(path.with_name("gone") if path.name == "3" else path))
    monkeypatch.setattr(
        Path, "unlink", lambda path: os.unlink(path) if path.name != "0" else os.unlink(tmp_path / "none")
    )
    keep_newest(tmp_path, 1)
    assert sorted(os.listdir(tmp_path)) == ["0", "2", "3"]
    keep_newest(tmp_path / "none", 1)
