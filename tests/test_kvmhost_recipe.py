"""What the image is made of, the key that names it, and what the project's declarations turn into."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
import stat
import subprocess

import pytest

from tests.kvmhost import cpio
from tests.kvmhost.arch import AARCH64, ARCHES, X86_64, Arch
from tests.kvmhost.image import current_recipe
from tests.kvmhost.initramfs import load_order
from tests.kvmhost.recipe import Recipe, mmdebstrap_command
from tests.kvmhost.requirements import distribution_files, requirements

PYPROJECT = {
    "project": {
        "name": "some.project",
        "version": "1.2",
        "dependencies": ["cffi>=2.0", "uvloop>=0.21"],
        "optional-dependencies": {"dev": ["pytest>=8", "mypy>=1", "types-cffi", "ruff"], "all": ["some-project[dev]"]},
        "scripts": {"some": "some.cli:main"},
        "entry-points": {"pytest11": {"some": "some.testing.plugin"}},
    }
}


def test_requirements_are_what_running_and_testing_needs() -> None:
    assert requirements(PYPROJECT) == ["cffi>=2.0", "pytest>=8", "uvloop>=0.21"]


@pytest.mark.parametrize("arch", ARCHES.values())
def test_the_present_project_asks_for_its_dependencies_and_pytest(arch: Arch) -> None:
    names = " ".join(current_recipe(arch).requirements)
    assert "uvloop" in names
    assert "pytest-asyncio" in names
    assert "mypy" not in names


def test_pushed_code_has_commands_and_metadata_like_an_installed_one() -> None:
    files = distribution_files(PYPROJECT)
    assert "from some.cli import main" in files["bin/some"]
    info = "lib/python3.11/site-packages/some_project-1.2.dist-info"
    assert "Version: 1.2\n" in files[f"{info}/METADATA"]
    assert "[pytest11]\nsome = some.testing.plugin\n" in files[f"{info}/entry_points.txt"]


def test_the_key_changes_with_anything_that_goes_in_and_with_nothing_else() -> None:
    recipe = Recipe.of(X86_64, ["cffi"], {"hook.sh": "text"})
    assert recipe.key == Recipe.of(X86_64, ["cffi"], {"hook.sh": "text"}).key
    others = [
        dataclasses.replace(recipe, requirements=["cffi>=2"]),
        dataclasses.replace(recipe, scripts={"hook.sh": "other"}),
        Recipe.of(AARCH64, ["cffi"], {"hook.sh": "text"}),
        dataclasses.replace(recipe, packages=(*recipe.packages, "vim")),
        dataclasses.replace(recipe, disk_gib=8),
        dataclasses.replace(recipe, kernels={"6.1": ("bookworm", "linux-image-cloud-amd64")}),
    ]
    assert len({recipe.key, *(other.key for other in others)}) == 7


def test_mmdebstrap_is_told_the_packages_and_where_its_hook_works() -> None:
    recipe = Recipe.of(X86_64, [], {})
    command = mmdebstrap_command(recipe, pathlib.Path("/stage"), ['Acquire::http::Proxy "http://proxy/"'])
    assert '--aptopt=Acquire::http::Proxy "http://proxy/"' in command
    assert f"--include={','.join(recipe.packages)}" in command
    assert '--customize-hook=sh /stage/hook.sh "$1" /stage 16' in command
    assert command[-3:] == ["bookworm", "/dev/null", "-"]


def test_packages_that_this_machine_cannot_run_are_unpacked_and_no_more() -> None:
    recipe = dataclasses.replace(Recipe.of(AARCH64, [], {}), foreign=True)
    command = mmdebstrap_command(recipe, pathlib.Path("/stage"), [])
    assert {"--variant=extract", "--architectures=arm64"} <= set(command)
    assert "--variant=minbase" not in command
    assert "qemu-system-x86" not in recipe.packages
    assert recipe.kernels["6.1"] == ("bookworm", "linux-image-cloud-arm64")


def test_modules_load_after_all_they_need() -> None:
    dependencies = (
        "kernel/virtio.ko: kernel/virtio_ring.ko\n"
        "kernel/virtio_ring.ko:\n"
        "kernel/virtio-blk.ko.xz: kernel/virtio.ko kernel/virtio_ring.ko\n"
    )
    wanted = ["virtio_blk", "built_in", "virtio"]
    assert load_order(dependencies, wanted) == ["kernel/virtio_ring.ko", "kernel/virtio.ko", "kernel/virtio-blk.ko.xz"]


@pytest.mark.skipif(not shutil.which("cpio"), reason="cpio is not installed (apt-get install cpio)")
def test_an_initramfs_archive_unpacks(tmp_path: pathlib.Path) -> None:
    entries = [
        cpio.directory("bin"),
        cpio.file("bin/tool", b"#!/bin/sh\n", 0o755),
        cpio.Entry("link", stat.S_IFLNK | 0o777, b"bin/tool"),
        cpio.file("odd", b"12345"),
    ]
    subprocess.run(["cpio", "-id", "--quiet"], input=cpio.archive(entries), cwd=tmp_path, check=True, timeout=10)
    assert (tmp_path / "link").read_bytes() == b"#!/bin/sh\n"
    assert (tmp_path / "bin/tool").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "odd").read_bytes() == b"12345"
