"""Sandboxes with stock kernels: what a program that embeds them does, from an image to the end of the block."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import aiovmm
from aiovmm import Image
from aiovmm.image import KernelFiles
from tests.system.conftest import GUESTS, RELEASES

BOOT = 120.0


def kernel(release: str = "6.1") -> KernelFiles:
    return KernelFiles(GUESTS / release / "vmlinuz", GUESTS / release / "modules", release)


@pytest.fixture(scope="module", autouse=True)
def _cache(request: pytest.FixtureRequest) -> Iterator[None]:
    """On the disk of the host: a sandbox's own disk is a file there."""
    before = os.environ.get("XDG_CACHE_HOME")
    path = tempfile.mkdtemp(prefix="cache", dir="/var/tmp")
    os.environ["XDG_CACHE_HOME"] = path
    yield
    shutil.rmtree(path)
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with busybox, users, and files of all kinds."""
    path = tmp_path_factory.mktemp("root")
    for name in ("bin", "etc", "home/nobody", "opt/deep/er"):
        (path / name).mkdir(parents=True)
    shutil.copy(GUESTS / "bin/busybox", path / "bin/busybox")
    for applet in subprocess.check_output([GUESTS / "bin/busybox", "--list"], text=True).split():
        if applet != "busybox":
            (path / "bin" / applet).symlink_to("busybox")
    (path / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/home/nobody:/bin/sh\n")
    (path / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    os.chown(path / "home/nobody", 65534, 65534)
    (path / "opt/deep/er/data").write_bytes(bytes(range(256)) * 100)
    os.chmod(path / "bin/busybox", 0o755)
    return path


@pytest.mark.parametrize("release", RELEASES)
async def test_from_a_directory_to_commands(root: Path, release: str) -> None:
    async with aiovmm.sandbox(Image.from_directory(root), kernel=kernel(release), timeout=BOOT, name="box") as vm:
        done = await vm.run(
            ["sh", "-c", "hostname; cat /opt/deep/er/data | md5sum; stat -c %u /home/nobody"], timeout=60
        )
        digest = hashlib.md5((root / "opt/deep/er/data").read_bytes()).hexdigest()
        assert done.stdout.decode().split() == ["box", digest, "-", "65534"]
        mounts = (await vm.run(["cat", "/proc/mounts"], timeout=60)).stdout.decode()
        assert "root / overlay rw" in mounts
        free = (await vm.run(["df", "-m", "/"], timeout=60)).stdout.decode().splitlines()[-1].split()
        assert 1800 < int(free[1]) <= 2048
    assert list((Path(os.environ["XDG_CACHE_HOME"]) / "aiovmm/scratch").glob("*.ext4")) == []
