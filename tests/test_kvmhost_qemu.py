"""Which QEMU the nested host gets: a newer one beside the machine's, or the machine's with a word about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.debian import ArchiveError
from tests.kvmhost import qemu as module
from tests.kvmhost.arch import AARCH64, X86_64
from tests.kvmhost.qemu import Qemu, ensure_qemu


class Mirror:
    """Stands for Debian's archive."""

    def __init__(self, refuses: bool = False) -> None:
        self.refuses = refuses
        self.asked = 0

    def __call__(self, suite: str, directory: Path) -> Mirror:
        return self

    def unpack_with_dependencies(self, packages: Sequence[str], target: Path) -> None:
        self.asked += 1
        self.packages = packages
        if self.refuses:
            raise ArchiveError("the archive is away")
        (target / "usr/share/doc").mkdir(parents=True)
        (target / "usr/lib/x86_64-linux-gnu").mkdir(parents=True)
        (target / "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2").touch()


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Mirror:
    mirror = Mirror()
    monkeypatch.setattr(module, "Archive", mirror)
    return mirror


def get(cache: Path, **options: bool) -> Qemu:
    return ensure_qemu(cache, {}, lambda text: None, X86_64, **options)


def test_it_is_fetched_once_and_run_with_its_own_loader_and_libraries(mirror: Mirror, tmp_path: Path) -> None:
    first, second = get(tmp_path), get(tmp_path)
    assert first == second
    assert (mirror.asked, first.notice) == (1, "")
    (root,) = (tmp_path / "qemu").iterdir()
    libraries = root / "usr/lib/x86_64-linux-gnu"
    assert first.command[:3] == (str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries))
    assert str(root / "usr/bin/qemu-system-x86_64") in first.command
    assert first.environment == {"QEMU_MODULE_DIR": str(libraries / "qemu")}
    assert not (root / "usr/share/doc").exists()


def test_without_the_archive_it_is_the_machines_and_says_why(mirror: Mirror, tmp_path: Path) -> None:
    mirror.refuses = True
    for _ in range(2):  # not asked again at each start
        found = get(tmp_path)
        assert found.command == ("qemu-system-x86_64",)
        assert "the archive is away" in found.notice
    assert mirror.asked == 1
    mirror.refuses = False
    assert get(tmp_path).notice
    assert get(tmp_path, force=True).notice == ""
    assert get(tmp_path).notice == ""


def test_another_can_be_asked_for(mirror: Mirror, tmp_path: Path) -> None:
    env = {"AIOVMM_KVMHOST_QEMU": "/opt/qemu-system-x86_64"}
    assert ensure_qemu(tmp_path, env, lambda text: None, X86_64) == Qemu(("/opt/qemu-system-x86_64",))
    assert mirror.asked == 0


def test_each_architecture_has_one_of_its_own(mirror: Mirror, tmp_path: Path) -> None:
    first = get(tmp_path)
    env = {"AIOVMM_KVMHOST_QEMU": "/opt/qemu-system-x86_64"}  # that of x86
    second = ensure_qemu(tmp_path, env, lambda text: None, AARCH64)
    assert (mirror.asked, mirror.packages) == (2, ["qemu-system-arm"])
    assert second.command[-5].endswith("/usr/bin/qemu-system-aarch64")
    assert get(tmp_path) == first
    env = {"AIOVMM_KVMHOST_QEMU_AARCH64": "/opt/qemu-system-aarch64"}
    assert ensure_qemu(tmp_path, env, lambda text: None, AARCH64) == Qemu(("/opt/qemu-system-aarch64",))


def test_a_fetch_that_fails_later_keeps_what_there_is(mirror: Mirror, tmp_path: Path) -> None:
    before = get(tmp_path)
    mirror.refuses = True
    assert get(tmp_path, force=True) == before
