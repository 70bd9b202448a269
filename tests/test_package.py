"""The package as users get it: one abi3 wheel, with everything in it, that boots a stock kernel from where pip puts it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.kvmhost import Host

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", directory, ROOT]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (built,) = directory.glob("*.whl")
    return built


@pytest.mark.timeout(300)
def test_the_wheel_is_abi3_and_whole(wheel: Path) -> None:
    assert "-cp311-abi3-linux" in wheel.name
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "aiovmm").rglob("*.py"):
        assert str(path.relative_to(ROOT)) in names
    assert {"aiovmm/py.typed", "aiovmm/image/init.sh", "aiovmm/native/_native.abi3.so"} <= names
    assert not [n for n in names if n.startswith(("tests/", "benchmarks/", "examples/"))]


@pytest.mark.timeout(900)
def test_the_installed_package_boots_a_kernel(wheel: Path, kvmhost: Host) -> None:
    python = kvmhost.install(wheel)
    aiovmm = python.replace("/bin/python", "/bin/aiovmm")
    kvmhost.run([aiovmm, "doctor"], cwd="/", timeout=60).check()
    make = [
        aiovmm,
        "image",
        "initramfs",
        "/tmp/i.cpio",
        "--busybox",
        "/guest/bin/busybox",
        "--modules",
        "/guest/6.1/modules",
    ]
    kvmhost.run([*make, "--run", "echo it is $(uname -r)"], cwd="/", timeout=60).check()
    run = [aiovmm, "run", "--kernel", "/guest/6.1/vmlinuz", "--initramfs", "/tmp/i.cpio", "--memory", "256M", "--json"]
    done = kvmhost.run([*run, "--serial", "tty", "--cmdline", "console=ttyS0 quiet"], cwd="/", timeout=120).check()
    assert b"it is 6.1." in done.stdout
    assert b'"event": "stopped"' in done.stderr
    assert b'"reason": "shutdown"' in done.stderr
