"""The package for arm64: one abi3 wheel, cross compiled, that a Python of arm64 imports; no processor of that kind is needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from aiovmm.runtime.user_dirs import cache_directory
from tests.debian import Archive, ArchiveError
from tests.kvmhost import Host, wheels
from tests.kvmhost.arch import AARCH64
from tests.kvmhost.settings import PROJECT, PYTHON_VERSION
from tools import cross

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("aarch64-linux-gnu-gcc") is None:
        pytest.skip("aarch64-linux-gnu-gcc is not installed")
    try:
        return cross.wheel("aarch64", tmp_path_factory.mktemp("dist"))
    except cross.CrossBuildFailed as error:
        if "no headers" in str(error):
            pytest.skip(str(error))
        raise


def test_the_wheel_is_abi3_of_arm64_and_as_whole_as_the_machines(wheel: Path) -> None:
    assert wheel.name.endswith("-cp311-abi3-linux_aarch64.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        extension = archive.read("aiovmm/native/_native.abi3.so")
    assert int.from_bytes(extension[18:20], "little") == 183  # EM_AARCH64
    assert {str(path.relative_to(PROJECT)) for path in (PROJECT / "aiovmm").rglob("*.py")} <= names
    assert {"aiovmm/py.typed", "aiovmm/image/init.sh"} <= names
    assert not [name for name in names if name.startswith(("tests/", "tools/", "benchmarks/", "examples/"))]


@pytest.fixture(scope="module")
def python() -> Path:
    """A tree with Debian's Python of arm64, kept."""
    root = cache_directory() / "python-aarch64"
    if not root.exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=root.parent) as scratch:
            archive = Archive("bookworm", Path(scratch, "apt"), AARCH64.debian)
            try:
                archive.unpack_with_dependencies([f"python{PYTHON_VERSION}"], Path(scratch, "root"))
            except ArchiveError as error:
                pytest.skip(f"no Python of arm64: {error}")
            os.rename(f"{scratch}/root", root)
    return root


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)


IMPORT = """
import asyncio, platform
import aiovmm, aiovmm.native, uvloop

async def main():
    await asyncio.sleep(0)
    return platform.machine()

print(aiovmm.__file__)
print(uvloop.run(main()), aiovmm.native.ffi.sizeof("void *"), aiovmm.VMConfig.__name__)
"""


def test_a_python_of_arm64_imports_it_with_what_it_needs(wheel: Path, python: Path, tmp_path: Path) -> None:
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64 is not installed (apt-get install qemu-user)")
    site = tmp_path / "site"
    needed = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]
    wheels.install(needed, site, _run, AARCH64)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    env = {"PYTHONPATH": str(site), "PYTHONHOME": str(python / "usr"), "PATH": os.environ["PATH"]}
    command = ["qemu-aarch64", "-L", str(python), str(python / f"usr/bin/python{PYTHON_VERSION}"), "-c", IMPORT]
    done = subprocess.run(command, cwd="/", env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    origin, said = done.stdout.splitlines()
    assert origin == str(site / "aiovmm/__init__.py")
    assert said == "aarch64 8 VMConfig"


@pytest.mark.thorough
def test_it_is_installed_in_the_host_of_arm64(wheel: Path, kvmhost_aarch64: Host) -> None:
    installed = kvmhost_aarch64.install(wheel)
    done = kvmhost_aarch64.run([installed, "-c", IMPORT], cwd="/", timeout=120).check()
    assert b"/opt/installed/" in done.stdout
    assert b"aarch64 8 VMConfig" in done.stdout


def test_what_is_missing_is_named_with_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(cross.CrossBuildFailed, match=r"gcc-aarch64-linux-gnu libc6-dev-arm64-cross"):
        cross.environment("aarch64")


def test_a_compiler_that_refuses_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(cross.CrossBuildFailed, match=r"for linux-aarch64:\n.*no such thing"):
        cross._run(
            [sys.executable, "-c", "import sys; sys.exit('no such thing')"],
            {**os.environ, "_PYTHON_HOST_PLATFORM": "linux-aarch64"},
        )
