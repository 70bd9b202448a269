"""Packages out of an archive, by the real apt, from one that the test makes."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.debian import archive as archives
from tests.debian.archive import Archive, ArchiveError

pytestmark = pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt-get: this is not a Debian system")


def publish(place: Path, name: str, files: dict[str, str], depends: str = "", *, architecture: str = "all") -> None:
    """Add a package to the archive at `place`."""
    tree = place / "build" / f"{name}-{architecture}"
    for path, text in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
    (tree / "DEBIAN").mkdir(parents=True)
    control = f"Package: {name}\nVersion: 1.0\nArchitecture: {architecture}\nMaintainer: x <x@y.z>\nDescription: x\n"
    (tree / "DEBIAN/control").write_text(control + (f"Depends: {depends}\n" if depends else ""))
    deb = f"{name}_1.0_{architecture}.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-b", str(tree), str(place / deb)], check=True, capture_output=True
    )
    data = (place / deb).read_bytes()
    where = f"Filename: ./{deb}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n\n"
    extra = (f"Depends: {depends}\n" if depends else "") + where
    with (place / "Packages").open("a") as index:
        index.write(control + extra)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "mirror"
    place.mkdir()
    monkeypatch.setattr(archives, "sources", lambda suite: [f"[trusted=yes] copy:{place} ./"])
    publish(place, "libthing", {"usr/lib/libthing": "library"})
    publish(place, "thing", {"usr/bin/thing": "program"}, "libthing")
    publish(place, "linux-modules-9.1-x", {"usr/lib/modules/9.1-x/kernel/m.ko": "module"})
    publish(place, "linux-binary-9.1-x", {"usr/lib/modules/9.1-x/vmlinuz": "kernel"})
    publish(place, "linux-image-9.1-x", {}, "linux-binary-9.1-x, linux-modules-9.1-x, thing")
    publish(place, "linux-image-x", {}, "thing, linux-image-9.1-x")
    return place


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_a_package_comes_alone_or_with_all_that_it_needs(place: Path, tmp_path: Path) -> None:
    archive = Archive("x", tmp_path / "apt")
    archive.unpack(["thing"], tmp_path / "alone")
    archive.unpack_with_dependencies(["thing"], tmp_path / "whole")
    assert files(tmp_path / "alone") == {"usr/bin/thing"}
    assert files(tmp_path / "whole") == {"usr/bin/thing", "usr/lib/libthing"}


@pytest.mark.parametrize("architecture", ["arm64", "riscv64"])
def test_another_architectures_package_comes_from_the_same_archive(
    architecture: str, place: Path, tmp_path: Path
) -> None:
    for one in ("arm64", "riscv64"):
        publish(place, "tool", {f"usr/bin/{one}": one}, "thing", architecture=one)
    archive = Archive("x", tmp_path / "apt", architecture)
    archive.unpack(["tool"], tmp_path / "alone")
    archive.unpack_with_dependencies(["tool"], tmp_path / "whole")
    assert files(tmp_path / "alone") == {f"usr/bin/{architecture}"}
    assert files(tmp_path / "whole") == {f"usr/bin/{architecture}", "usr/bin/thing", "usr/lib/libthing"}


def test_a_kernel_is_put_together_from_its_packages(place: Path, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    kernel = Archive("x", tmp_path / "apt").unpack_kernel("linux-image-x", tmp_path / "root")
    assert kernel.release == "9.1-x"
    assert kernel.kernel.read_text() == "kernel"
    assert kernel.modules is not None
    assert (kernel.modules / "kernel/m.ko").read_text() == "module"


def test_what_is_not_there_is_an_error_with_apts_words(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="Unable to locate package nothing"):
        Archive("x", tmp_path / "apt").unpack(["nothing"], tmp_path / "root")
    with pytest.raises(ArchiveError, match="thing of Debian x depends on no kernel"):
        Archive("x", tmp_path / "apt").unpack_kernel("thing", tmp_path / "root")


def test_an_archive_that_cannot_be_reached_is_an_error(place: Path, tmp_path: Path) -> None:
    shutil.rmtree(place)
    with pytest.raises(ArchiveError, match="apt-get failed for Debian x"):
        Archive("x", tmp_path / "apt").unpack(["thing"], tmp_path / "root")
